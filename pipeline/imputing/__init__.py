"""A partially paired data set completed by a trained model: new shards, in which what the model made is marked.

What is there is copied, byte for byte; what is missing is made of it where the model can, and is sure enough; what was
made stands in imputed.parquet (`marks`). The shards are written as those of a corpus are (`pipeline/writing`): each by
rename, and a call that was cut off is taken up by the next one. Which rows a shard has and the noise of each follow
from the data and the settings, so that any number of ranks gives the same bytes where each has as many threads.
"""
