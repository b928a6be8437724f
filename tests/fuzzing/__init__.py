"""Every reader of gpucnn against mutated files.

    python -m fuzzing --seconds 60              # new files at each start; prints its seed
    python -m fuzzing --seed 7 --case 1234      # one file again: what it did, and its bytes

A reader may succeed or raise a GpucnnError.  Anything else is a finding: another exception, more
than 10 s or 1 GiB, a message of many pages, a file left behind or written elsewhere, a program
started, a crash.

mutators.py           what is done to a file
safetensors_files.py  the same behind checksums
corpus.py             the good files
targets.py            the readers
cases.py              one reader, one file: the verdict
run.py                many of them, in worker processes that may crash
guided.py             Atheris in place of chance, where it is installed
faulty.py             readers with faults, which must be found
"""
