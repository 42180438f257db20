//! Where a setting's value comes from, and the error for an invalid value.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::{OsStr as ClapOsStr, Resettable, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, Error};

use super::redact::{PEM, redact};

/// Begins the default of a setting whose value cannot be read. The rest of the default is the error, reported only when the
/// setting is used, so that `--help`, the flag, and subcommands without the setting still work. No other value begins with it:
/// variables and arguments cannot contain it, and [`read`] rejects files that do.
const UNAVAILABLE: char = '\0';

/// Parses a setting's value. The error names the setting and its value without secrets, and says why the value is invalid.
#[derive(Clone)]
pub(super) struct Setting<T> {
    parse: fn(&str) -> Result<T, String>,
    /// Whether the whole value is secret, not only a password in it.
    is_secret: bool,
}

pub(super) fn setting<T>(parse: fn(&str) -> Result<T, String>) -> Setting<T> {
    Setting { parse, is_secret: false }
}

/// A setting whose value is never shown, even if it is invalid.
pub(super) fn secret_setting<T>(parse: fn(&str) -> Result<T, String>) -> Setting<T> {
    Setting { parse, is_secret: true }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Setting<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let fail = |why: &str| {
            let name = arg.map(name_of).unwrap_or_default();
            let message = if self.is_secret {
                format!("{name} has an invalid value: {why}")
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

/// clap appends no line break to a raw message.
fn with_newline(mut message: String) -> String {
    message.push('\n');
    message
}

/// The setting in an error: `OFFRAMP_PREFIX (--prefix)`.
fn name_of(arg: &Arg) -> String {
    format!("{} (--{})", variable_of(arg), arg.get_long().unwrap_or_default())
}

/// The environment variable of a setting: `OFFRAMP_PREFIX`. Those of OpenTelemetry have its names: `OTEL_SERVICE_NAME`.
pub(super) fn variable_of(arg: &Arg) -> String {
    let name = arg.get_long().unwrap_or_default().to_uppercase().replace('-', "_");
    if name.starts_with("OTEL_") { name } else { format!("OFFRAMP_{name}") }
}

/// See [`super::from_environment`].
pub(super) fn from_environment(
    command: Command,
    is_setting: &dyn Fn(&Arg) -> bool,
    variable: &dyn Fn(&OsStr) -> Option<OsString>,
) -> Command {
    command
        .mut_args(|arg| if is_setting(&arg) { arg_from_environment(arg, variable) } else { arg })
        .mut_subcommands(|subcommand| from_environment(subcommand, is_setting, variable))
}

fn arg_from_environment(arg: Arg, variable: &dyn Fn(&OsStr) -> Option<OsString>) -> Arg {
    let name = variable_of(&arg);
    let file_name = format!("{name}_FILE");
    let set = |name: &str| variable(name.as_ref()).filter(|value| !value.is_empty());

    let arg = arg.hide_env_values(true);
    // clap would take an empty variable for a value.
    let is_empty = set(&name).is_none() && variable(name.as_ref()).is_some();
    let arg = if is_empty { arg } else { arg.env(&name) };

    match (set(&name), set(&file_name)) {
        (Some(_), None) => arg,
        (None, None) => match set(&format!("{name}_DEFAULT")) {
            Some(value) => arg.default_value(value),
            None => arg,
        },
        (None, Some(path)) => match read(Path::new(&path)) {
            Ok(value) => arg.default_value(value).hide_default_value(true),
            Err(why) => {
                let path = path.to_string_lossy();
                unavailable(arg, &format!("{name}: cannot read the file {path} (see {file_name}): {why}"))
            }
        },
        (Some(_), Some(_)) => unavailable(arg, &format!("{name} and {file_name} are both set; unset one of them")),
    }
}

/// The content of a file without the trailing line breaks that editors and `echo` add.
fn read(path: &Path) -> Result<String, String> {
    let mut text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let is_pem = text.contains(PEM);
    if text.contains(|c: char| c.is_control() && !(is_pem && matches!(c, '\r' | '\n'))) {
        return Err("the file must contain only the value, on one line".to_owned());
    }
    Ok(text)
}

fn unavailable(arg: Arg, message: &str) -> Arg {
    arg.env(Resettable::<ClapOsStr>::Reset).default_value(format!("{UNAVAILABLE}{message}")).hide_default_value(true)
}
