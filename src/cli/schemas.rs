//! `offramp schemas`: prints the JSON Schemas of commands, events and documents, and validators for MongoDB.

use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use offramp::schemas::{SchemaFile, all, mongodb_commands, mongodb_script};

use super::error::WrongConfiguration;

/// List, print or write JSON Schemas, and validators for MongoDB
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  offramp schemas                             list all schemas
  offramp schemas commands/payment.failure    one schema
  offramp schemas --write schemas             all of them, as files
  offramp schemas --mongodb > validators.js   validators for MongoDB; run them with mongosh")]
pub struct Arguments {
    /// Print this schema; without a name, list all
    #[arg(value_name = "NAME", conflicts_with_all = ["write", "check", "json"])]
    name: Option<String>,

    /// List as JSON, one object per line; with --mongodb, one command per line
    #[arg(long)]
    json: bool,

    /// Print validators for MongoDB, as a script for mongosh
    #[arg(long, conflicts_with_all = ["name", "write", "check"])]
    mongodb: bool,

    /// Write all schemas to this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["check", "json"])]
    write: Option<PathBuf>,

    /// Fail unless the schemas in this directory are up to date
    #[arg(long, value_name = "DIR", conflicts_with = "json")]
    check: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let schemas = all();
    if let Some(directory) = &arguments.write {
        write(&schemas, directory)
    } else if let Some(directory) = &arguments.check {
        check(&schemas, directory)
    } else if arguments.mongodb {
        validators(arguments.json)
    } else if let Some(name) = &arguments.name {
        print(&schemas, name)
    } else {
        list(&schemas, arguments.json)
    }
}

fn validators(json: bool) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if !json {
        write!(out, "{}", mongodb_script()?)?;
        return Ok(());
    }
    for command in mongodb_commands()? {
        writeln!(out, "{command}")?;
    }
    Ok(())
}

fn list(schemas: &[SchemaFile], json: bool) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let width = schemas.iter().map(|file| file.name.len()).max().unwrap_or(0);
    for SchemaFile { path, name, title, .. } in schemas {
        if json {
            writeln!(out, "{}", serde_json::json!({ "name": name, "file": path, "description": title }))?;
        } else {
            writeln!(out, "{name:width$}  {title}")?;
        }
    }
    Ok(())
}

fn print(schemas: &[SchemaFile], name: &str) -> anyhow::Result<()> {
    let Some(file) = schemas.iter().find(|file| file.name == name || file.path == name) else {
        return Err(WrongConfiguration(format!("there is no schema \"{name}\"; `offramp schemas` lists all")).into());
    };
    write!(stdout().lock(), "{}", file.text())?;
    Ok(())
}

fn write(schemas: &[SchemaFile], directory: &Path) -> anyhow::Result<()> {
    for file in schemas {
        let path = directory.join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create the directory {}", folder.display()))?;
        }
        fs::write(&path, file.text()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(stdout().lock(), "{} schemas written to {}", schemas.len(), directory.display())?;
    Ok(())
}

fn check(schemas: &[SchemaFile], directory: &Path) -> anyhow::Result<()> {
    let stale: Vec<&str> = schemas
        .iter()
        .filter(|file| fs::read_to_string(directory.join(&file.path)).ok().as_deref() != Some(&file.text()))
        .map(|file| file.path.as_str())
        .collect();
    if !stale.is_empty() {
        let directory = directory.display();
        bail!(
            "not up to date in {directory}: {}; `offramp schemas --write {directory}` updates them",
            stale.join(", ")
        );
    }
    Ok(())
}
