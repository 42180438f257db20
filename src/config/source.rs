//! Where a setting's value comes from, and what is said when it is bad.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::{OsStr as ClapOsStr, Resettable, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, Error};

use super::secret::redact;

/// Begins the default of a setting whose value could not even be had; the rest is the sentence to say when the setting is
/// needed, so that `--help`, a flag instead, or a command that does without it still work. No value from outside begins
/// so: neither variables nor arguments can, and [`read`] refuses such files.
const UNAVAILABLE: char = '\0';

/// Parses a setting's value. A bad one is answered with a sentence that names the setting and its value (without
/// what is secret in it), and says why it is bad and what would be right.
#[derive(Clone)]
pub(super) struct Setting<T> {
    parse: fn(&str) -> Result<T, String>,
    /// Whether all of its value is secret, and not only a password in it.
    is_secret: bool,
}

pub(super) fn setting<T>(parse: fn(&str) -> Result<T, String>) -> Setting<T> {
    Setting { parse, is_secret: false }
}

/// A setting whose value is not shown, not even a wrong one.
pub(super) fn secret_setting<T>(parse: fn(&str) -> Result<T, String>) -> Setting<T> {
    Setting { parse, is_secret: true }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Setting<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let fail = |why: &str| {
            let name = arg.map(name_of).unwrap_or_default();
            let message = if self.is_secret {
                format!("{name} cannot be what it is set to: {why}")
            } else {
                format!("{name} cannot be \"{}\": {why}", redact(&value.to_string_lossy()))
            };
            Error::raw(ErrorKind::ValueValidation, with_newline(message)).with_cmd(command)
        };
        let text = value.to_str().ok_or_else(|| fail("it is not UTF-8 text"))?;
        if let Some(message) = text.strip_prefix(UNAVAILABLE) {
            return Err(Error::raw(ErrorKind::ValueValidation, with_newline(message.to_owned())).with_cmd(command));
        }
        (self.parse)(text).map_err(|why| fail(&why))
    }
}

/// clap puts no line break behind a raw message.
fn with_newline(mut message: String) -> String {
    message.push('\n');
    message
}

/// `OFFRAMP_PREFIX (--prefix)`
fn name_of(arg: &Arg) -> String {
    // Not `get_env`: a variable that is set to nothing has been taken from the argument.
    let flag = arg.get_long().unwrap_or_default();
    format!("OFFRAMP_{} (--{flag})", flag.to_uppercase().replace('-', "_"))
}

/// Lets every setting of `command` and its subcommands come from the file that `NAME_FILE` names, and treats a variable
/// that is set to nothing as not set (`OFFRAMP_TEMPLATES=` in a compose file).
///
/// `variable` reads an environment variable: `std::env::var_os`, except in tests.
#[must_use]
pub fn from_environment(command: Command, variable: &dyn Fn(&OsStr) -> Option<OsString>) -> Command {
    command
        .mut_args(|arg| arg_from_environment(arg, variable))
        .mut_subcommands(|subcommand| from_environment(subcommand, variable))
}

fn arg_from_environment(arg: Arg, variable: &dyn Fn(&OsStr) -> Option<OsString>) -> Arg {
    let Some(name) = arg.get_env().map(OsStr::to_owned) else { return arg };
    let set = |name: &OsStr| variable(name).filter(|value| !value.is_empty());
    let mut file_name = name.clone();
    file_name.push("_FILE");

    let is_set_to_nothing = set(&name).is_none() && variable(&name).is_some();
    let arg = if is_set_to_nothing { arg.env(Resettable::<ClapOsStr>::Reset) } else { arg };

    match (set(&name), set(&file_name)) {
        (_, None) => arg,
        (None, Some(path)) => match read(Path::new(&path)) {
            Ok(value) => arg.default_value(value).hide_default_value(true),
            Err(why) => unavailable(
                arg,
                &format!(
                    "{}: cannot read the file {} (see {}): {why}",
                    name.to_string_lossy(),
                    path.to_string_lossy(),
                    file_name.to_string_lossy()
                ),
            ),
        },
        (Some(_), Some(_)) => unavailable(
            arg,
            &format!("{} and {} are both set; unset one of them", name.to_string_lossy(), file_name.to_string_lossy()),
        ),
    }
}

/// What a key or certificate in PEM form has in it. Only such a value has more than one line.
pub(super) const PEM: &str = "-----BEGIN ";

/// The content of a file without its last line break, which editors and `echo` add.
fn read(path: &Path) -> Result<String, String> {
    let mut text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let is_pem = text.contains(PEM);
    if text.contains(|c: char| c.is_control() && !(is_pem && matches!(c, '\r' | '\n'))) {
        return Err("the file must hold one line of text, the value alone".to_owned());
    }
    Ok(text)
}

fn unavailable(arg: Arg, message: &str) -> Arg {
    arg.env(Resettable::<ClapOsStr>::Reset).default_value(format!("{UNAVAILABLE}{message}")).hide_default_value(true)
}
