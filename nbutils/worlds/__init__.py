"""The embedded worlds, drawn and looked at in memory; `nbutils.simulate` writes them as files."""
