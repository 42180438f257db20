//! No import cycles between the files or folders of a crate. Two files that need each other are one idea, or lack a third file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::Visit;
use syn::{Attribute, Item, UseTree, Visibility};

use crate::{files, repository};

/// Path of a module within its crate: `["store", "outbox"]`; empty for the crate root.
type Module = Vec<String>;

/// A crate's modules, one per file.
struct Crate {
    modules: BTreeMap<Module, syn::File>,
    /// The origin of each re-exported name: `(["amqp"], "Consumer")` → `["amqp", "consumer"]`.
    reexports: BTreeMap<(Module, String), Module>,
}

impl Crate {
    /// Reads all files below `src` that belong to the crate `root`, which is `lib` or `main`.
    fn read(src: &Path, root: &str) -> Self {
        let declared = |name: &str| fs::read_to_string(src.join(format!("{name}.rs"))).unwrap_or_default();
        let own = declared(root);
        let mut modules = BTreeMap::new();
        for file in files(src, "rs") {
            let relative = file.strip_prefix(src).unwrap().with_extension("");
            let mut module: Module =
                relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "mod") || module == [root] {
                module.pop();
            }
            let is_own = module.first().is_none_or(|first| own.contains(&format!("mod {first};")));
            if is_own {
                modules.insert(module, syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap());
            }
        }
        let for_tests: Vec<Module> = modules.iter().flat_map(|(module, file)| for_tests(module, file)).collect();
        modules.retain(|module, _| !for_tests.iter().any(|tests| module.starts_with(tests)));
        let mut read = Self { modules, reexports: BTreeMap::new() };
        for (module, file) in &read.modules {
            for item in &file.items {
                if let Item::Use(item) = item
                    && !matches!(item.vis, Visibility::Inherited)
                {
                    for path in flatten(&item.tree) {
                        if let (Some(target), Some(name)) = (read.target(module, &path), path.last())
                            && target != *module
                        {
                            read.reexports.insert((module.clone(), name.clone()), target);
                        }
                    }
                }
            }
        }
        read
    }

    /// The module that `path` refers to when it is used in `module`.
    fn target(&self, module: &[String], path: &[String]) -> Option<Module> {
        let (mut at, rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (module.to_vec(), &path[1..]),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                (module[..module.len().checked_sub(ups)?].to_vec(), &path[ups..])
            }
            // A child module by its bare name.
            first if self.modules.contains_key(&[module, &[first.to_owned()]].concat()) => (module.to_vec(), path),
            _ => return None,
        };
        for part in rest {
            let child = [at.as_slice(), std::slice::from_ref(part)].concat();
            if self.modules.contains_key(&child) {
                at = child;
            } else if let Some(origin) = self.reexports.get(&(at.clone(), part.clone())) {
                at.clone_from(origin);
            } else {
                break;
            }
        }
        Some(at)
    }

    /// The modules that each module imports. Declaring and re-exporting children does not count.
    fn imports(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        self.modules
            .iter()
            .map(|(module, file)| {
                let mut paths = Paths::default();
                paths.visit_file(file);
                let targets = paths.0.iter().filter_map(|path| self.target(module, path)).filter(|to| to != module);
                (module.clone(), targets.collect())
            })
            .collect()
    }
}

/// Every path in a file, except in tests and re-exports.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, is_reexport): (&[Attribute], bool) = match item {
            Item::Mod(item) => (&item.attrs, false),
            Item::Use(item) => (&item.attrs, !matches!(item.vis, Visibility::Inherited)),
            Item::Fn(item) => (&item.attrs, false),
            Item::Impl(item) => (&item.attrs, false),
            _ => (&[], false),
        };
        if !is_reexport && !attributes.iter().any(is_for_tests) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.0.extend(flatten(&item.tree));
    }

    /// `pub(super)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }
}

/// `#[cfg(test)]`, and `#[cfg(any(test, …))]`.
fn is_for_tests(attribute: &Attribute) -> bool {
    let condition = attribute.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default();
    attribute.path().is_ident("cfg") && (condition == "test" || condition.starts_with("any (test"))
}

/// The children of a module that are compiled for tests only.
fn for_tests(module: &Module, file: &syn::File) -> Vec<Module> {
    let children = file.items.iter().filter_map(|item| match item {
        Item::Mod(child) if child.attrs.iter().any(is_for_tests) => Some(child.ident.to_string()),
        _ => None,
    });
    children.map(|child| [module.as_slice(), &[child]].concat()).collect()
}

/// `a::{b, c as d}` → `a::b`, `a::c`.
fn flatten(tree: &UseTree) -> Vec<Vec<String>> {
    let below = |name: String, trees: Vec<Vec<String>>| {
        trees.into_iter().map(|path| [vec![name.clone()], path].concat()).collect::<Vec<_>>()
    };
    match tree {
        UseTree::Path(path) => below(path.ident.to_string(), flatten(&path.tree)),
        UseTree::Name(name) => vec![vec![name.ident.to_string()]],
        UseTree::Rename(rename) => vec![vec![rename.ident.to_string()]],
        UseTree::Glob(_) => vec![vec![]],
        UseTree::Group(group) => group.items.iter().flat_map(flatten).collect(),
    }
}

/// The import cycles: each is the set of modules that reach each other (a strongly connected component).
fn cycles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<Vec<String>> {
    let reached = |from: &Module| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(targets) = next.pop().and_then(|module| imports.get(module)) {
            next.extend(targets.iter().filter(|target| reached.insert((*target).clone())));
        }
        reached
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|module| (module, reached(module))).collect();
    let is_reached = |from: &Module, to: &Module| reached.get(from).is_some_and(|reached| reached.contains(to));
    let cycle = |module: &Module| {
        let members = imports.keys().filter(|other| is_reached(module, other) && is_reached(other, module));
        members.map(|member| member.join("::")).collect::<Vec<_>>()
    };
    imports.keys().map(cycle).filter(|cycle| !cycle.is_empty()).collect()
}

/// Imports between top-level folders: `["store", "outbox"]` and everything below it count as `["store"]`.
fn between_folders(imports: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut folders: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    let folder = |module: &Module| module.iter().take(1).cloned().collect::<Module>();
    for (from, targets) in imports {
        let targets = targets.iter().map(folder).filter(|to| *to != folder(from));
        folders.entry(folder(from)).or_default().extend(targets);
    }
    folders
}

#[track_caller]
fn check(src: &str, root: &str, files_min: usize) {
    let read = Crate::read(&repository().join(src), root);
    assert!(read.modules.len() >= files_min, "{src}: only {} files were found", read.modules.len());
    let imports = read.imports();
    for (between, imports) in [("files", &imports), ("folders", &between_folders(&imports))] {
        assert_eq!(cycles(imports), BTreeSet::new(), "{src}: import cycles between {between}");
    }
}

#[test]
fn the_domain_crate_has_no_import_cycles() {
    check("crates/domain/src", "lib", 15);
}

#[test]
fn the_mail_crate_has_no_import_cycles() {
    check("crates/mail/src", "lib", 10);
}

#[test]
fn the_library_has_no_import_cycles() {
    check("src", "lib", 30);
}

#[test]
fn the_command_line_has_no_import_cycles() {
    check("src", "main", 10);
}

#[test]
fn cycles_are_detected() {
    let module = |name: &str| vec![name.to_owned()];
    let imports = |pairs: &[(&str, &str)]| {
        let mut imports: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (from, to) in pairs {
            imports.entry(module(from)).or_default().insert(module(to));
        }
        imports
    };
    assert_eq!(cycles(&imports(&[("a", "b"), ("a", "c"), ("b", "c")])), BTreeSet::new());
    let expected = BTreeSet::from([vec!["b".to_owned(), "c".to_owned()]]);
    assert_eq!(cycles(&imports(&[("a", "b"), ("b", "c"), ("c", "b")])), expected);
}
