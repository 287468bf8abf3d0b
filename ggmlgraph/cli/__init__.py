"""The command line: one module a command, options in, lines out, exit status.

`main.py` is the console script and the place where every error ends, `commands.py` declares all commands and their
options without importing what they do, so that `--help` is fast. `amounts.py` is an option
of several, `terminal.py` prints what a model writes; `outputs.py` keeps a command from writing over what it reads. What
a command does lies in other folders.
"""
