"""The command ``cnnkern`` as ``python -m cnnkern``: that of a given interpreter, installed or not."""

from cnnkern.cli import main

main(prog_name="cnnkern")
