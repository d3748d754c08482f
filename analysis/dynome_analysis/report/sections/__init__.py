"""What the report says: figures with captions in plain words, the numbers beside them, and what is missing.

Marks say how far a number is the papers': [P] stated by the paper or read in its authors' code, [G] from the same
group's earlier paper or code, [O] our own choice. They are never left out.
"""
