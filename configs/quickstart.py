"""The run that starts when no config file is named."""

from smallbatch import config


def get_config():
    return config.quickstart()
