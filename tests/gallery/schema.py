"""The JSON schema of `find.json`, made from the dataclasses of `gallery/result.py` and their docstrings.

`python tests/gallery/schema.py > docs/tll-find-1.schema.json` writes it anew.
"""

import ast
import dataclasses
import inspect
import json
import types
import typing

from tll_jax.gallery import result

PATH_BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "The bytes of `path`; there only where they are not UTF-8.",
}


def schema():
    definitions = {}
    root = _of(result.Result, definitions)
    content = definitions.pop(root["$ref"].removeprefix("#/$defs/"))
    content["properties"] = {"format": {"const": result.FORMAT}, **content["properties"]}
    content["required"] = ["format", *content["required"]]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "tll-find-1.schema.json"}
    return {**head, "title": result.FORMAT, **content, "$defs": dict(sorted(definitions.items()))}


def _of(kind, definitions):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = None
            definitions[kind.__name__] = _of_dataclass(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin in (types.UnionType, typing.Union):
        (one,) = (argument for argument in arguments if argument is not types.NoneType)
        return {"anyOf": [_of(one, definitions), {"type": "null"}]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is tuple:
        items = [_of(one, definitions) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]}


def _of_dataclass(kind, definitions):
    words = _docstrings(kind)
    properties = {}
    for name, annotation in typing.get_type_hints(kind).items():
        properties[name] = _of(annotation, definitions)
        if name in words:
            properties[name] = {**properties[name], "description": words[name]}
    required = list(properties)
    if "path" in properties:
        properties["path_base64"] = PATH_BASE64
    return {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__),
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _docstrings(kind):
    """Of the fields, those that are inherited too."""
    found = {}
    for one in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        (tree,) = ast.parse(inspect.getsource(one)).body
        for entry, after in zip(tree.body, tree.body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(entry, ast.AnnAssign) and is_text:
                found[entry.target.id] = " ".join(after.value.value.split())
    return found


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
