"""Pictures and the sentences that go with them. NumPy and files only: nothing here knows a network.

packages   pinned npm packages, fetched and checked
concepts   what there is to draw: labels, tags, and which entries are the same thing
styles     the drawing styles, and where each keeps its pictures
stickers   builds the sticker set: shards, index, contact sheet
pairs      reads a built set back
colours    names a picture's colour, and turns it into another
prompts    the sentences that a picture is trained with
"""
