"""``vpmu paper``: the figures of the source beside those that the mechanisms give.

`source` reads the source's figures, `experiment` runs the two experiments over seeds, `rows` sets one beside
the other, `report` prints them.
"""
