"""The only folder that uses private members of TRL: one concern per file, combined in `trainer.py`.

`members.py` lists the members that it relies on.
"""
