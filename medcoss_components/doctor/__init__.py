"""``medcoss doctor``: is this machine, this installation and this data set ready for a long run?"""
