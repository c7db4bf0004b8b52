"""The embedded worlds, drawn and looked at in memory; `nbutils.simulate` writes them as files."""

KINDS = {  # what a world's scenes take turns in, where nothing else is asked for
    "city": ("suburb", "rows", "centre", "industry", "campus"),
    "globe": ("farmland", "arid", "mountain", "city", "wetland", "forest", "coast"),
}
ELSEWHERE = {"city": ("oldtown", "estate"), "globe": ("savanna",)}  # other towns, another biome: only by name


def check_kinds(generator: str, kinds: tuple[str, ...] | None) -> None:
    """Refuse kinds of scene that a generator does not know, or the same one twice.

    Raises:
        ValueError: The message names those there are.
    """
    known = KINDS[generator] + ELSEWHERE[generator]
    for kind in kinds or ():
        if kind not in known:
            raise ValueError(f"unknown kind {kind!r} of scene; the {generator} knows {', '.join(known)}")
    if kinds is not None and not len(kinds) == len(set(kinds)) > 0:
        raise ValueError(f"`kinds` names at least one kind of scene and each once, got {', '.join(kinds) or 'none'}")
