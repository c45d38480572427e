"""Errors that are the user's to mend. The command line prints them as one line; everything else is a bug."""


class TwoStageError(Exception):
    """A file, setting or value that cannot be used. The message names it and says what is wrong."""


class AudioError(TwoStageError):
    """A sound file that cannot be read or written."""


class CheckpointError(TwoStageError):
    """A file of weights that is missing, corrupt, foreign, or does not fit."""


class ConfigError(TwoStageError):
    """A setting that is unknown, of the wrong type, or impossible."""


class OutputError(TwoStageError):
    """A file or folder that cannot be written."""


class DataError(TwoStageError):
    """A corpus, manifest or pair that cannot be used."""
