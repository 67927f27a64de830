"""What was lost: measures of the damage that narrowing did, one file each, from arrays to plain data.

Nothing here knows what an example is: the measures take probabilities, losses, labels and features. `readers` turns
a task of text into those; another kind of example needs only another reader.
"""
