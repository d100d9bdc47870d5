"""What each process does in the tests of the command under torchrun: ``python -m weightsmith``, then a word of what is
left of the group."""

import runpy

from parting import tell_what_is_left

if __name__ == "__main__":
    try:
        runpy.run_module("weightsmith", run_name="__main__")
    finally:
        tell_what_is_left()
