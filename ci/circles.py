#!/usr/bin/env python3
"""Fails if files of a crate import each other in a circle: ci/circles.py infer-core/src trainer/src

It also fails if a file in a folder of APART reaches, over imports, a file that names the crate there.

A file imports another one if it names something that is defined there: in a `use`, or by a path in
the code (`crate::a::f(…)`, `super::f(…)`, `a::f(…)` with a module a in scope). The rules:
- Re-exports are followed: `crate::Error` is an import of the file with the definition, not of lib.rs.
- `mod a;` is no import. So a parent may name its children, or children their parent, but not both:
  what children share lies in a file beside them (kernels/table.rs), and the parent picks.
- `#[cfg(test)]` is left out. All other `cfg`s are seen at once, whatever the target: which is why a
  script does this, and no tool that compiles.
- Methods are not seen: they go with the type of their receiver.
"""
import re
import sys
from pathlib import Path

APART = {"trainer/src/io": "dfdx"}
WORD = re.compile(r"[A-Za-z_]\w*")
NOISE = re.compile(
    r"""//[^\n]*|/\*.*?\*/                           # comments
    |b?c?r(\#*)".*?"\1|b?c?"(?:\\.|[^"\\])*"          # strings
    |b?'(?:\\(?:[^u]|u\{\w+\})[^']*|[^'\\])'          # characters, but no lifetimes
    """,
    re.X | re.S,
)
TOKEN = re.compile(r"[A-Za-z_]\w*|::|\S")
DEFINES = {"fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod", "macro_rules"}
CLOSING = {"{": "}", "(": ")", "[": "]"}


class Module:
    """A module, in a file or inline: its children, and what its names stand for."""

    def __init__(self, file, parent=None):
        self.file, self.parent = file, parent
        self.root = parent.root if parent else self
        self.children, self.defined, self.uses, self.globs, self.paths = {}, set(), {}, [], []

    def find(self, name, seen=()):
        """The file or module that a name of this module stands for, or None."""
        if (self, name) in seen:
            return self.file if name in self.defined else None
        seen = (*seen, (self, name))
        if name in self.children:
            return self.children[name]
        if name in self.defined:
            return self.file
        if name in self.uses:
            return self.resolve(self.uses[name], seen)
        for path in self.globs:
            target = self.resolve(path, seen)
            if isinstance(target, Module) and (found := target.find(name, seen)):
                return found
        return None

    def resolve(self, path, seen=()):
        """The file or module that a path leads to, or None outside of the crate."""
        at, rest = self, list(path)
        if rest[0] == "crate":
            at = self.root
            rest.pop(0)
        elif rest[0] == "self":
            rest.pop(0)
        while rest and rest[0] == "super" and at.parent:
            at = at.parent
            rest.pop(0)
        local = at is self and path[0] != "self"
        for i, name in enumerate(rest):
            found = at.find(name, seen)
            if not isinstance(found, Module):
                # Not defined by a word that this script knows: something of the module, if the path said so.
                return found or (None if local and i == 0 else at.file)
            at = found
        return at


def skip(tokens, i):
    """The place behind the bracket that closes the one at i."""
    stack = []
    while i < len(tokens):
        if tokens[i] in CLOSING:
            stack.append(CLOSING[tokens[i]])
        elif stack and tokens[i] == stack[-1]:
            stack.pop()
            if not stack:
                return i + 1
        i += 1
    return i


def skip_item(tokens, i):
    """The place behind the item (or statement) that begins at i."""
    while i < len(tokens):
        if tokens[i] == ";":
            return i + 1
        if tokens[i] == "{":
            return skip(tokens, i)
        i = skip(tokens, i) if tokens[i] in CLOSING else i + 1
    return i


def read_use(tokens, i, prefix, module):
    """Takes the tree of a `use` into the module. Returns the place behind it."""
    path = list(prefix)
    while tokens[i] not in (";", ",", "}"):
        token = tokens[i]
        if token == "{":
            i += 1
            while tokens[i] != "}":
                i = read_use(tokens, i, path, module)
                i += tokens[i] == ","
            return i + 1
        if token == "*":
            module.globs.append(path)
            module.paths.append(path)
        elif token == "as":
            i += 1
            module.uses[tokens[i]] = path
        elif WORD.match(token):
            path = path + [token]
        i += 1
    if tokens[i - 1] != "*":
        if path[-1] == "self" and len(path) > 1:
            path.pop()
        module.paths.append(path)
        if tokens[i - 2] != "as":
            module.uses[path[-1]] = path
    return i


def read(module, tokens, folder):
    """Takes the items of a module, and those of its children, whose files lie in the folder."""
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token == "#" and tokens[i + 1 : i + 2] == ["["]:
            end = skip(tokens, i + 1)
            if "".join(tokens[i:end]) == "#[cfg(test)]":
                while tokens[end : end + 2] == ["#", "["]:
                    end = skip(tokens, end + 1)
                end = skip_item(tokens, end)
            i = end
        elif token == "mod" and WORD.match(tokens[i + 1]) and tokens[i + 2] in (";", "{"):
            name = tokens[i + 1]
            if tokens[i + 2] == "{":
                end = skip(tokens, i + 2)
                child = module.children[name] = Module(module.file, module)
                read(child, tokens[i + 3 : end - 1], folder / name)
                i = end
            else:
                file = next((f for f in (folder / f"{name}.rs", folder / name / "mod.rs") if f.exists()), None)
                if file:
                    child = module.children[name] = Module(file, module)
                    read_file(child, folder / name)
                i += 3
        elif token == "use" and (WORD.match(tokens[i + 1]) or tokens[i + 1] in ("{", "::")):
            i = read_use(tokens, i + 1, [], module)
        elif WORD.match(token):
            if token in DEFINES:
                at = i + 1 + (tokens[i + 1] in ("!", "mut"))
                if WORD.match(tokens[at]):
                    module.defined.add(tokens[at])
            path = [token]
            while tokens[i + 1 : i + 2] == ["::"] and WORD.match(tokens[i + 2]):
                i += 2
                path.append(tokens[i])
            if len(path) > 1 or token in module.uses:
                module.paths.append(path)
            i += 1
        else:
            i += 1


def read_file(module, folder):
    tokens = TOKEN.findall(NOISE.sub(" ", module.file.read_text()))
    read(module, tokens, folder)


def imports(module, edges, names):
    """Notes which file imports which one, and by what name; and the names that paths of a file begin with."""
    for path in module.paths:
        names.setdefault(module.file, set()).add(path[0])
        target = module.resolve(path)
        file = target.file if isinstance(target, Module) else target
        if file and file != module.file:
            edges.setdefault(module.file, {}).setdefault(file, "::".join(path))
    for child in module.children.values():
        imports(child, edges, names)


def shortest_circle(edges):
    best = []
    for start in edges:
        came, queue = {}, [start]  # breadth first; came holds who imports a file
        for file in queue:
            for target in edges.get(file, {}):
                if target not in came:
                    came[target] = file
                    queue.append(target)
        circle = [start]
        while circle[-1] in came and (len(circle) == 1 or circle[-1] != start):
            circle.append(came[circle[-1]])
        if len(circle) > 1 and not 0 < len(best) <= len(circle):
            best = circle[::-1]
    return best


def reaches(file, edges, names, crate):
    """The files over which a file comes to one that names the crate, or None."""
    came, queue = {file: None}, [file]
    for at in queue:
        if crate in names.get(at, ()):
            chain = []
            while at:
                chain.append(at)
                at = came[at]
            return chain[::-1]
        for target in edges.get(at, {}):
            if target not in came:
                came[target] = at
                queue.append(target)
    return None


def check(root):
    """Prints circles that have no import in common, the shortest first, and imports across a border. Returns
    whether there are none."""
    module, edges, names = Module(root), {}, {}
    read_file(module, root.parent)
    imports(module, edges, names)
    apart = True
    for folder, crate in APART.items():
        for file in sorted(file for file in names if Path(folder) in file.parents):
            if chain := reaches(file, edges, names, crate):
                apart = False
                print(f"{file} reaches {crate}: {' -> '.join(str(at.relative_to(root.parent)) for at in chain)}")
    files = len(edges)
    circles = 0
    while found := shortest_circle(edges):
        circles += 1
        print(f"{root}: a circle of {len(found) - 1} files")
        for file, target in zip(found, found[1:]):
            names = [path.relative_to(root.parent) for path in (file, target)]
            print(f"    {names[0]} imports {edges[file].pop(target)} of {names[1]}")
    print(f"{root}: {circles or 'no'} circles, {files} files that import others")
    return apart and not circles


def main():
    sources = map(Path, sys.argv[1:] or ["infer-core/src", "infer-cli/text/src", "trainer/src"])
    roots = [root for source in sources for root in (source / "lib.rs", source / "main.rs") if root.exists()]
    sys.exit(not roots or not all([check(root) for root in roots]))


main()
