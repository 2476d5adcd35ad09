"""The gateway, exactly as an operator starts it."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv = ["app", "serve"]
    runpy.run_module("app", run_name="__main__", alter_sys=True)
