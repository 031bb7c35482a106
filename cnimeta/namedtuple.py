"""`NamedTuple` without the price of importing `typing`.

A CNI plugin is started once per Pod, and `typing` (with `collections` and `re` behind it) costs more
than most plugins' work. Type checkers see the real `typing.NamedTuple`; at run time the small class below
gives the same immutable, comparable, self-describing tuples. Only class syntax is supported, in modules that start
with `from __future__ import annotations`:

    class Route(NamedTuple):
        dst: str
        gw: str = ""
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    try:
        from _collections import _tuplegetter as _getter
    except ImportError:  # not CPython

        def _getter(index, doc):
            return property(lambda self: tuple.__getitem__(self, index), doc=doc)

    def _new(cls, /, *args, **kwargs):
        fields, defaults = cls._fields, cls._field_defaults
        if len(args) == len(fields) and not kwargs:  # as a rule
            return tuple.__new__(cls, args)
        if len(args) > len(fields):
            raise TypeError(f"{cls.__name__} takes {len(fields)} values, got {len(args)}")
        values = list(args)
        for name in fields[len(args) :]:
            if name in kwargs:
                values.append(kwargs.pop(name))
            elif name in defaults:
                values.append(defaults[name])
            else:
                raise TypeError(f"{cls.__name__} needs a value for {name!r}")
        if kwargs:
            raise TypeError(f"{cls.__name__} has no field or got it twice: {', '.join(sorted(kwargs))}")
        return tuple.__new__(cls, values)

    def _repr(self):
        pairs = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({pairs})"

    def _make(cls, iterable):
        return cls(*iterable)

    def _replace(self, /, **changes):
        # The list comes first: in `f(*generator, **changes)` the changes are copied before the generator runs.
        values = [changes.pop(name, value) for name, value in zip(self._fields, self, strict=True)]
        return type(self)(*values, **changes)

    def _asdict(self):
        return dict(zip(self._fields, self, strict=True))

    def _getnewargs(self):
        return tuple(self)

    class _Record(tuple):
        """What all of them have. A class inherits it more quickly than it is told it: 20 µs for each."""

        __slots__ = ()
        _fields = ()
        _field_defaults = {}  # noqa: RUF012 - as typing.NamedTuple has it
        __new__ = _new
        __repr__ = _repr
        __getnewargs__ = _getnewargs
        _make = classmethod(_make)
        _replace = __replace__ = _replace
        _asdict = _asdict

    class _RecordMeta(type):
        def __new__(mcs, name, bases, namespace):
            if not bases:  # the NamedTuple marker itself
                return super().__new__(mcs, name, bases, namespace)
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            if fields[len(fields) - len(defaults) :] != tuple(defaults):
                raise TypeError(f"{name}: a field without a default follows one with a default")
            namespace["__slots__"] = ()
            namespace["_fields"] = namespace["__match_args__"] = fields
            namespace["_field_defaults"] = defaults
            for index, field in enumerate(fields):
                namespace[field] = _getter(index, "")
            return type(name, (_Record,), namespace)

    class NamedTuple(metaclass=_RecordMeta):
        """Base for record classes; see the module's text."""
