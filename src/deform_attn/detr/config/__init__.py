"""Settings: of the model, of its training and of a run of the command, as frozen dataclasses and TOML."""
