"""Everything that names private members of TRL, one concern a file, put together in `trainer.py`.

`members.py` lists what the folder relies on.
"""
