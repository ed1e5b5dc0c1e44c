"""Many runs: declarations, planning, execution on Ray, status."""
