// SPDX-License-Identifier: MPL-2.0
//! Imports point down: no circle of files within a crate, no arrow between crates but the written
//! ones, no element that knows the other.
//!
//! A file imports another when a path in it (in a `use`, an expression, a type, a macro's or an
//! attribute's arguments) leads into a module of that file. `mod child;` alone imports nothing; what
//! only tests see (`#[cfg(test)]`) does not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use proc_macro2::{TokenStream, TokenTree};
use serde_json::Value;
use syn::{
    Attribute, Expr, ExprLit, Ident, ImplItemFn, Item, ItemMod, ItemUse, Lit, Macro, Meta,
    MetaNameValue, Token, UseTree, VisRestricted,
    punctuated::Punctuated,
    visit::{self, Visit},
};

/// What each crate that is delivered may depend on, of this workspace.
const ARROWS: [(&str, &[&str]); 7] = [
    ("droidrelay-wire", &[]),
    ("droidrelay-camera", &[]),
    ("droidrelay-rtmp", &["droidrelay-wire"]),
    (
        "gst-plugin-droidrelay",
        &["droidrelay-wire", "droidrelay-rtmp", "droidrelay-camera"],
    ),
    (
        "droidrelay",
        &["droidrelay-wire", "droidrelay-rtmp", "droidrelay-camera"],
    ),
    ("droidrelay-bridge", &["droidrelay-wire"]),
    (
        "droidrelay-enroll",
        &["droidrelay-wire", "droidrelay-camera"],
    ),
];

/// The plugin's folders that only `lib.rs` and themselves import.
const ELEMENTS: [&str; 2] = ["mqttvalve", "rtmpauthsink"];

#[test]
fn no_crate_has_a_circle_of_imports() {
    let found: Vec<String> = roots()
        .iter()
        .flat_map(|(name, root)| {
            let circles = Imports::of(root).circles();
            circles
                .into_iter()
                .map(move |circle| format!("{name}: {circle}"))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn crates_depend_on_each_other_only_as_written() {
    let packages = packages();
    let is_for_tests = |package: &&Value| package["publish"] == serde_json::json!([]);
    let named = |name: &str| {
        packages
            .iter()
            .find(|package| text(package, "name") == name)
    };
    for package in packages.iter().filter(|package| !is_for_tests(package)) {
        let name = text(package, "name");
        let (_, allowed) = ARROWS
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap_or_else(|| {
                panic!("{name} is not in ARROWS; is it for tests, publish = false?")
            });
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = text(dependency, "name");
            let Some(other) = named(on) else { continue };
            // A feature that only tests have may bring what serves only tests.
            let is_for_tests = dependency["kind"] == "dev"
                || dependency["optional"] == true && is_for_tests(&other);
            assert!(
                is_for_tests || allowed.contains(&on),
                "{name} -> {on} is no arrow of ARROWS"
            );
        }
    }
}

#[test]
fn no_element_is_imported_but_by_lib_rs_and_itself() {
    let element = |file: &Path| {
        ELEMENTS.into_iter().find(|element| {
            file.components()
                .any(|part| Path::new(&part).with_extension("") == Path::new(element))
        })
    };
    let (_, root) = roots()
        .into_iter()
        .find(|(name, _)| name == "gst-plugin-droidrelay")
        .unwrap();
    let imports = Imports::of(&root);
    for name in ELEMENTS {
        assert!(imports.files().any(|file| element(file) == Some(name)));
    }
    let found: Vec<String> = imports
        .arrows
        .iter()
        .filter(|((from, to), _)| {
            element(to).is_some() && element(to) != element(from) && *from != root
        })
        .map(|(arrow, paths)| imports.shown(arrow, paths))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

/// The workspace's packages, as cargo tells them.
fn packages() -> Vec<Value> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--manifest-path",
        ])
        .arg(manifest)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Every library and program of the workspace: its package and its root file.
fn roots() -> Vec<(String, PathBuf)> {
    let mut roots = Vec::new();
    for package in packages() {
        for target in package["targets"].as_array().unwrap() {
            let kinds = target["kind"].as_array().unwrap();
            if kinds
                .iter()
                .any(|kind| kind == "lib" || kind == "rlib" || kind == "bin")
            {
                roots.push((
                    text(&package, "name").into(),
                    text(target, "src_path").into(),
                ));
            }
        }
    }
    roots
}

/// `["a", "b"]` is `crate::a::b`.
type ModulePath = Vec<String>;
/// A module has more than one file where features choose between them.
type Source = (ModulePath, PathBuf, Vec<Item>);

#[derive(Default)]
struct Module {
    file: PathBuf,
    children: BTreeSet<String>,
}

/// Which file imports which, and by which paths.
#[derive(Default)]
struct Imports {
    root: PathBuf,
    modules: BTreeMap<ModulePath, Module>,
    arrows: BTreeMap<(PathBuf, PathBuf), Vec<String>>,
}

impl Imports {
    fn of(root: &Path) -> Self {
        let mut imports = Imports {
            root: root.into(),
            ..Default::default()
        };
        let mut files = Vec::new();
        imports.read(root, root.parent().unwrap(), Vec::new(), &mut files);
        for (module, file, items) in files {
            let mut reader = Reader {
                imports: &mut imports,
                file,
                module,
                names: BTreeMap::new(),
            };
            items.iter().for_each(|item| reader.visit_item(item));
        }
        imports
    }

    /// Reads a module's file, whose children lie in `folder`, and theirs.
    fn read(&mut self, file: &Path, folder: &Path, path: ModulePath, files: &mut Vec<Source>) {
        let source = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let items = syn::parse_file(&source)
            .unwrap_or_else(|error| panic!("{file:?}: {error}"))
            .items;
        self.declare(&items, file, folder, &path, files);
        files.push((path, file.into(), items));
    }

    fn declare(
        &mut self,
        items: &[Item],
        file: &Path,
        folder: &Path,
        path: &ModulePath,
        files: &mut Vec<Source>,
    ) {
        let mut children = BTreeSet::new();
        for item in items {
            let Item::Mod(module) = item else { continue };
            if only_for_tests(&module.attrs) {
                continue;
            }
            let name = module.ident.to_string();
            let child = [path.as_slice(), std::slice::from_ref(&name)].concat();
            let inner = folder.join(&name);
            match &module.content {
                Some((_, items)) => self.declare(items, file, &inner, &child, files),
                None => {
                    let beside = |place| file.parent().unwrap().join(place);
                    let mut found: Vec<PathBuf> =
                        placed(&module.attrs).iter().map(beside).collect();
                    if found.is_empty() {
                        let file = Some(inner.with_extension("rs")).filter(|file| file.exists());
                        found.push(file.unwrap_or_else(|| inner.join("mod.rs")));
                    }
                    for file in found {
                        self.read(&file, &inner, child.clone(), files);
                    }
                }
            }
            children.insert(name);
        }
        let file = file.into();
        self.modules.insert(path.clone(), Module { file, children });
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.modules.values().map(|module| &module.file)
    }

    /// All files that lead back to themselves, by what they import, one text for each set of them.
    fn circles(&self) -> Vec<String> {
        let reached = |from: &Path| {
            let mut reached = BTreeSet::new();
            let mut next = vec![from];
            while let Some(file) = next.pop() {
                for (_, to) in self.arrows.keys().filter(|(from, _)| from == file) {
                    if reached.insert(to) {
                        next.push(to);
                    }
                }
            }
            reached
        };
        let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
            self.files().map(|file| (file, reached(file))).collect();
        let circles: BTreeSet<BTreeSet<&PathBuf>> = reached
            .iter()
            .filter(|(file, to)| to.contains(*file))
            .map(|(file, to)| {
                let back = |other: &&&PathBuf| reached[**other].contains(file);
                to.iter().filter(back).copied().collect()
            })
            .collect();
        circles
            .into_iter()
            .map(|circle| {
                let arrows = self
                    .arrows
                    .iter()
                    .filter(|((from, to), _)| circle.contains(from) && circle.contains(to))
                    .map(|(arrow, paths)| self.shown(arrow, paths));
                let arrows: Vec<String> = arrows.collect();
                format!("a circle of {} files\n{}", circle.len(), arrows.join("\n"))
            })
            .collect()
    }

    fn shown(&self, (from, to): &(PathBuf, PathBuf), paths: &[String]) -> String {
        let folder = self.root.parent().unwrap();
        let [from, to] = [from, to].map(|file| file.strip_prefix(folder).unwrap_or(file).display());
        format!("  {from} -> {to} by {}", paths.join(", "))
    }
}

/// Finds the paths in one file.
struct Reader<'a> {
    imports: &'a mut Imports,
    file: PathBuf,
    module: ModulePath,
    /// Modules that this file has brought into scope by `use`.
    names: BTreeMap<String, ModulePath>,
}

impl Reader<'_> {
    /// The module that a path leads into, and how many of its segments that takes.
    fn module_of(&self, path: &[String]) -> Option<(ModulePath, usize)> {
        let (mut module, mut used) = match path.first()?.as_str() {
            "crate" => (Vec::new(), 1),
            "self" => (self.module.clone(), 1),
            "super" => (self.module.clone(), 0),
            name if self.imports.modules[&self.module].children.contains(name) => {
                (self.module.clone(), 0)
            }
            name => (self.names.get(name)?.clone(), 1),
        };
        while path.get(used).is_some_and(|segment| segment == "super") {
            module.pop()?;
            used += 1;
        }
        while let Some(segment) = path.get(used) {
            if !self
                .imports
                .modules
                .get(&module)?
                .children
                .contains(segment)
            {
                break;
            }
            module.push(segment.clone());
            used += 1;
        }
        Some((module, used))
    }

    fn import(&mut self, path: &[String]) {
        let Some((module, _)) = self.module_of(path) else {
            return;
        };
        let to = self.imports.modules[&module].file.clone();
        if to != self.file {
            let arrow = (self.file.clone(), to);
            let paths = self.imports.arrows.entry(arrow).or_default();
            let path = path.join("::");
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }

    fn import_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: &Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import_tree(&with(&path.ident), &path.tree),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import_tree(before, tree);
                }
            }
            UseTree::Glob(_) => {
                self.import(before);
                let Some((module, used)) = self.module_of(before) else {
                    return;
                };
                if used == before.len() {
                    for child in self.imports.modules[&module].children.clone() {
                        let path = [module.as_slice(), std::slice::from_ref(&child)].concat();
                        self.names.entry(child).or_insert(path);
                    }
                }
            }
            UseTree::Name(name) if name.ident == "self" => {
                let last = before.last().cloned().unwrap_or_default();
                self.import_named(before, last);
            }
            UseTree::Name(name) => {
                self.import_named(&with(&name.ident), name.ident.to_string());
            }
            UseTree::Rename(rename) if rename.ident == "self" => {
                self.import_named(before, rename.rename.to_string());
            }
            UseTree::Rename(rename) => {
                self.import_named(&with(&rename.ident), rename.rename.to_string());
            }
        }
    }

    fn import_named(&mut self, path: &[String], name: String) {
        self.import(path);
        if let Some((module, used)) = self.module_of(path)
            && used == path.len()
        {
            self.names.insert(name, module);
        }
    }

    /// Paths in what only a macro can read.
    fn import_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                }
                // What follows colons of another path, or a dot, begins none.
                TokenTree::Ident(ident) => {
                    self.import_unless_single(&path);
                    path.clear();
                    if colons == 0 {
                        path.push(ident.to_string());
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => {
                    self.import_unless_single(&path);
                    path.clear();
                    self.import_tokens(group.stream());
                }
                _ => {
                    self.import_unless_single(&path);
                    path.clear();
                }
            }
            colons = 0;
        }
        self.import_unless_single(&path);
    }

    /// A name alone is a variable or a field.
    fn import_unless_single(&mut self, path: &[String]) {
        if path.len() > 1 {
            self.import(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !only_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        if !only_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.content.is_some() {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.import_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if path.leading_colon.is_none() {
            self.import_unless_single(&names);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        // GObject's wrapper names its class, and the class its wrapper: they are one.
        let is_wrapper = item
            .path
            .segments
            .last()
            .is_some_and(|segment| segment.ident == "wrapper");
        if !is_wrapper {
            self.import_tokens(item.tokens.clone());
        }
        visit::visit_macro(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.import_tokens(list.tokens.clone());
        }
        visit::visit_attribute(self, attribute);
    }

    /// `pub(in crate::a)` imports nothing.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .meta
                .require_list()
                .is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

/// What `#[path = "…"]` says, and `#[cfg_attr(…, path = "…")]`.
fn placed(attributes: &[Attribute]) -> Vec<String> {
    let metas = attributes.iter().flat_map(|attribute| {
        let nested = Punctuated::<Meta, Token![,]>::parse_terminated;
        match &attribute.meta {
            Meta::List(list) if list.path.is_ident("cfg_attr") => {
                list.parse_args_with(nested).unwrap().into_iter().collect()
            }
            meta => vec![meta.clone()],
        }
    });
    let paths = metas.filter_map(|meta| match meta {
        Meta::NameValue(MetaNameValue {
            path,
            value:
                Expr::Lit(ExprLit {
                    lit: Lit::Str(text),
                    ..
                }),
            ..
        }) if path.is_ident("path") => Some(text.value()),
        _ => None,
    });
    paths.collect()
}

// --- shown to fail ---------------------------------------------------------------------------------

/// The circles of a crate of these files, the first of which is its root.
fn planted(files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, source) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, source).unwrap();
    }
    Imports::of(&folder.path().join(files[0].0)).circles()
}

#[track_caller]
fn assert_circle(found: &[String], arrows: &[&str]) {
    let [circle] = found else {
        panic!("one circle was planted, found are {found:#?}");
    };
    for arrow in arrows {
        assert!(circle.contains(arrow), "{arrow:?} is not in {circle}");
    }
}

#[test]
fn a_direct_circle_is_found() {
    let found = planted(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::c; pub struct B;"),
        ("c.rs", "use crate::a::A; use std::fmt;"),
    ]);
    assert_circle(
        &found,
        &[
            "circle of 3 files",
            "a.rs -> b.rs by crate::b::B",
            "b.rs -> c.rs by crate::c",
            "c.rs -> a.rs by crate::a::A",
        ],
    );
}

#[test]
fn a_circle_by_super_is_found() {
    let found = planted(&[
        ("lib.rs", "mod x;"),
        ("x/mod.rs", "mod a; mod b;"),
        ("x/a.rs", "use super::b::B;"),
        ("x/b.rs", "mod deep { use super::super::a; }"),
    ]);
    assert_circle(
        &found,
        &[
            "x/a.rs -> x/b.rs by super::b::B",
            "x/b.rs -> x/a.rs by super::super::a",
        ],
    );
}

#[test]
fn a_circle_by_a_nested_use_tree_is_found() {
    let found = planted(&[
        ("main.rs", "mod a; mod x;"),
        ("a.rs", "use crate::{x::{self as y, b::{B, C as D}}};"),
        ("x.rs", "pub mod b;"),
        ("x/b.rs", "use crate::{a::*};"),
    ]);
    assert_circle(
        &found,
        &[
            "a.rs -> x/b.rs by crate::x::b::B, crate::x::b::C",
            "x/b.rs -> a.rs by crate::a",
        ],
    );
}

#[test]
fn a_circle_by_paths_in_line_is_found() {
    let found = planted(&[
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "fn f() -> u8 { crate::b::g() }"),
        (
            "b.rs",
            r#"fn g() -> u8 { println!("{}", [super::c::h()][0]); 0 }"#,
        ),
        ("c.rs", "use crate::d as e; fn h() { e::i() }"),
        ("d.rs", "struct S { #[arg(value = crate::a::f)] f: u8 }"),
    ]);
    assert_circle(
        &found,
        &[
            "a.rs -> b.rs by crate::b::g",
            "b.rs -> c.rs by super::c::h",
            "c.rs -> d.rs by crate::d, e::i",
            "d.rs -> a.rs by crate::a::f",
        ],
    );
}

#[test]
fn a_parent_that_gives_on_what_its_child_takes_from_it_is_a_circle() {
    let child = ("x.rs", "use super::Y; pub struct X;");
    let declared = planted(&[("lib.rs", "mod x; struct Y;"), child]);
    assert!(declared.is_empty(), "{declared:#?}");
    let used = planted(&[("lib.rs", "mod x; struct Y; fn f() { x::f() }"), child]);
    assert_circle(&used, &["lib.rs -> x.rs by x::f"]);
    let given_on = planted(&[("lib.rs", "mod x; pub use x::X; struct Y;"), child]);
    assert_circle(
        &given_on,
        &["lib.rs -> x.rs by x::X", "x.rs -> lib.rs by super::Y"],
    );
}

#[test]
fn what_tests_import_makes_no_circle() {
    let found = planted(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B;"),
        (
            "b.rs",
            "pub(in crate::a) struct B; #[cfg(test)] use crate::a; \
             #[cfg(test)] mod tests { use crate::a::A; } #[cfg(test)] mod other; \
             impl B { #[cfg(test)] fn f() { crate::a::f() } }",
        ),
    ]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_class_and_its_wrapper_are_one() {
    let found = planted(&[
        ("lib.rs", "mod x;"),
        (
            "x/mod.rs",
            "mod imp; glib::wrapper! { pub struct X(ObjectSubclass<imp::X>); }",
        ),
        (
            "x/imp.rs",
            "impl ObjectSubclass for X { type Type = super::X; }",
        ),
    ]);
    assert!(found.is_empty(), "{found:#?}");
}
