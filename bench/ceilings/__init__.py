"""What a machine can do at most, measured or modelled, what a case has to do at least, and how near a call comes."""
