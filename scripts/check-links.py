#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Checks the links of all tracked Markdown files; exits 1 and names file:line where one is broken.

    scripts/check-links.py

Checked are: relative links and images, anchors into Markdown files, paths of this repository in
`code spans` and in code blocks, names of scripts, sources and tests in code spans, and references
from sources to docs/. Only what `git ls-files` knows exists. Links to other hosts are not followed.
"""

import itertools
import os
import posixpath
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from urllib.parse import unquote

ROOT = subprocess.check_output(["git", "rev-parse", "--show-toplevel"], text=True).rstrip("\n")

FENCE = re.compile(r" {0,3}(```+|~~~+)")
HEADING = re.compile(r" {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
INLINE = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")
REFERENCE = re.compile(r"\[[^\]]+\]\[([^\]]+)\]")
DEFINITION = re.compile(r" {0,3}\[([^\]]+)\]:\s*<?([^\s>]+)")
HTML = re.compile(r"\b(?:href|src|srcset)=[\"']([^\"'\s,]+)")
HTML_ANCHOR = re.compile(r"\b(?:id|name)=[\"']([^\"']+)[\"']")
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)
PATH = re.compile(r"[\w.@-]+(?:/[\w.@{},*-]*)+")
SOURCE = re.compile(r"[\w.@-]+\.(?:rs|py|sh|md)")
# Names of tests are sentences.
TEST = re.compile(r"[a-z]+(?:_[a-z0-9]+){4,}")
DOCS = re.compile(r"\bdocs/[\w./-]*\w")


def tracked():
    def listed(*options):
        out = subprocess.check_output(["git", "ls-files", "-z", *options], text=True, cwd=ROOT)
        return set(filter(None, out.split("\0")))

    return listed() - listed("--deleted")


FILES = tracked()
FOLDERS = {"."}
for name in FILES:
    while name := posixpath.dirname(name):
        FOLDERS.add(name)
PATHS = FILES | FOLDERS
NAMES = {posixpath.basename(name) for name in FILES}


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


TESTS = {test for name in FILES if name.endswith(".rs")
         for line in read(name) for test in re.findall(r"\bfn (\w+)", line)}


def lines_of(name):
    """Number, text and whether it is in a code block, of each line."""
    fence = None
    for number, line in enumerate(read(name), 1):
        mark = FENCE.match(line)
        if fence is None and mark:
            fence = mark[1]
        elif fence is not None:
            if mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = None
            else:
                yield number, line, True
        else:
            yield number, line, False


def slug(heading):
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"<[^>]+>", "", text).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(name, known={}):
    if name not in known:
        found, seen = set(), {}
        for _, line, is_code in lines_of(name):
            if is_code:
                continue
            if heading := HEADING.match(line):
                text = slug(heading[1])
                count = seen.get(text, 0)
                seen[text] = count + 1
                found.add(f"{text}-{count}" if count else text)
            found.update(HTML_ANCHOR.findall(line))
        known[name] = found
    return known[name]


def broken_link(source, target):
    if EXTERNAL.match(target) or target.startswith("//"):
        return None
    path, _, anchor = target.partition("#")
    name = source
    if path:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(path)))
        if name not in PATHS:
            return f"no such file: {target}"
    if anchor:
        if not name.endswith(".md"):
            return f"an anchor, but not into a Markdown file: {target}"
        if unquote(anchor) not in anchors(name):
            return f"no such anchor: {target}"
    return None


def expanded(pattern):
    """`a/{b,c}` is a/b and a/c."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def broken_path(source, text):
    """Only what begins with a folder of the repository's root, or beside `source`, is a path."""
    folders = [folder for folder in ("", posixpath.dirname(source))
               if posixpath.join(folder, text.split("/")[0]) in FOLDERS]
    if not folders:
        return None
    def exists(path):
        paths = [posixpath.join(folder, path) for folder in folders]
        return any(fnmatchcase(name, path) for name in PATHS for path in paths)

    missing = [path for path in expanded(text.rstrip("/.,")) if not exists(path)]
    return f"no such path: {', '.join(missing)}" if missing else None


def words_of(line):
    for word in re.split(r"[\s\"'=|;&()<>\[\]]+", line):
        word = word.split("::")[0].split(":")[0].removeprefix("./").rstrip(".,")
        if PATH.fullmatch(word):
            yield word


def faults(name):
    definitions = {}
    used = []
    for number, line, is_code in lines_of(name):
        if is_code:
            for word in words_of(line):
                yield number, broken_path(name, word)
            continue
        for _, code in CODE.findall(line):
            for word in words_of(code):
                yield number, broken_path(name, word)
            if SOURCE.fullmatch(code) and code not in NAMES:
                yield number, f"no file of this name: {code}"
            if TEST.fullmatch(code) and code not in TESTS:
                yield number, f"no test of this name: {code}"
        prose = CODE.sub("", line)
        if definition := DEFINITION.match(prose):
            definitions[definition[1].lower()] = number
            yield number, broken_link(name, definition[2])
            continue
        for target in INLINE.findall(CODE.sub("`", line)) + HTML.findall(prose):
            yield number, broken_link(name, target)
        used += [(number, label.lower()) for label in REFERENCE.findall(prose)]
    for number, label in used:
        if label not in definitions:
            yield number, f"no such reference: [{label}]"


def faults_of_source(name):
    for number, line in enumerate(read(name), 1):
        for path in DOCS.findall(line):
            if path not in PATHS:
                yield number, f"no such file: {path}"


def main():
    failed = 0
    documents = sorted(name for name in FILES if name.endswith(".md"))
    sources = sorted(name for name in FILES if re.search(r"\.(rs|sh|py|toml|ya?ml|launch)$", name))
    for name in documents + sources:
        for number, fault in faults(name) if name.endswith(".md") else faults_of_source(name):
            if fault:
                failed += 1
                print(f"{name}:{number}: {fault}")
    if failed:
        sys.exit(1)
    print(f"{len(documents)} documents, no broken link")


main()
