"""What has to be set before anything is imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for GPUs are run where there is none, if Triton is installed
