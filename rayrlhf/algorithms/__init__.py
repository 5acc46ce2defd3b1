"""The mathematics: pure tensor functions that know nothing of configuration, processes or Ray.

Letters in shapes: `batch` sequences, `time` tokens of a right-padded sequence, `vocab` token ids. A mask is True where a
token counts; what lies under a False never changes a result or a gradient, be it infinite or not a number.
"""
