"""`python -m parity REFERENCE PORT`: judge a port."""

import signal
import sys

from parity.command import main

if __name__ == "__main__":
    # A port runs on in its own process group unless this process ends it on its way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
