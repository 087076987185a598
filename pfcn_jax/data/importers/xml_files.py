"""XML label files, read without DTDs: no entity is expanded and no other file is opened."""

from __future__ import annotations

import pathlib
from xml.etree import ElementTree
from xml.parsers import expat

from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.files import read_file


def read_xml(path: pathlib.Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
      DataError: it cannot be read, is not XML, or has a DTD (which label files have no use for, and attacks do).
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: has a document type declaration (DTD); remove it", kind="label-unreadable")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_file(path, "label-unreadable"), True)
    except DataError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"{path}: not XML ({error})", kind="label-unreadable") from error
    return builder.close()
