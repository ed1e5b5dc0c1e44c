"""What Streamlit runs for each open page; its arguments are the folder of all results and the sweep's name."""

import sys

from tdmpc2.sweeps.board.page import draw

draw(sys.argv[1], sys.argv[2])
