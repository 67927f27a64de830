"""What was lost: measures of the damage that narrowing did, one file each, from arrays to plain data.

Nothing here knows what an example is: the measures take probabilities, losses, labels and features. `readers` turns
what networks say of texts or images into those.
"""
