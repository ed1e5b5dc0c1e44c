#!/bin/bash
# On an AWS spot instance: when it hears that it will be taken away, in two minutes, its runs checkpoint and leave.
set -u
url=http://169.254.169.254/latest
while sleep 5; do
    session=$(curl -sf -m 2 -X PUT "$url/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') || continue
    if curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $session" "$url/meta-data/spot/instance-action"; then
        exec python "$(dirname "$0")/leave_node.py" --grace 100
    fi
done
