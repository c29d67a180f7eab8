"""One thread: the suite runs in several processes already, and more threads than cores cost minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
