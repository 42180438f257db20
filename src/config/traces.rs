//! Where traces are sent: OpenTelemetry's own variables. Those that are not here, for example `OTEL_TRACES_SAMPLER`, are read by its SDK.

use std::collections::HashMap;
use std::fmt;

use clap::{ArgAction, Args};
use percent_encoding::percent_decode_str;
use url::Url;

use super::source::{secret_setting, setting};
use super::values::authorities;
use crate::tls::{Authorities, Tls};
use crate::traces::TraceOptions;

/// The path that is appended to the URL of a collector for all signals.
const TRACES_PATH: &str = "v1/traces";

/// Traces go to an OpenTelemetry collector.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traces (OpenTelemetry)")]
pub struct TraceSettings {
    /// URL of an OpenTelemetry collector: OTLP over HTTP [default: none; no traces]
    ///
    /// For example http://localhost:4318; /v1/traces is appended
    #[arg(long, value_name = "URL", value_parser = setting(collector_url))]
    pub otel_exporter_otlp_endpoint: Option<Url>,

    /// The same for traces only; nothing is appended [default: none]
    #[arg(long, value_name = "URL", value_parser = setting(collector_url))]
    pub otel_exporter_otlp_traces_endpoint: Option<Url>,

    /// Headers for the collector, such as api-key=secret [default: none]
    ///
    /// name=value, separated by commas; values are percent-encoded
    #[arg(long, value_name = "HEADERS", value_parser = secret_setting(CollectorHeaders::parse))]
    pub otel_exporter_otlp_headers: Option<CollectorHeaders>,

    /// The same for traces only; replaces the former [default: none]
    #[arg(long, value_name = "HEADERS", value_parser = secret_setting(CollectorHeaders::parse))]
    pub otel_exporter_otlp_traces_headers: Option<CollectorHeaders>,

    /// PEM file of the authorities to trust at the collector
    ///
    /// [default: as with the other servers]
    #[arg(long, value_name = "FILE", value_parser = setting(authorities))]
    pub otel_exporter_otlp_certificate: Option<Authorities>,

    /// Name of this program in traces [default: offramp]
    #[arg(long, value_name = "NAME")]
    pub otel_service_name: Option<String>,

    /// otlp, or none: no traces [default: otlp]
    #[arg(long, value_name = "EXPORTER", value_parser = setting(traces_exporter))]
    pub otel_traces_exporter: Option<TracesExporter>,

    /// true: no traces, whatever else is set
    #[arg(
        long,
        value_name = "BOOLEAN",
        default_value = "false",
        action = ArgAction::Set,
        value_parser = setting(boolean)
    )]
    pub otel_sdk_disabled: bool,
}

impl TraceSettings {
    /// How traces are sent. `None`: they are off. `tls` is that of the other servers.
    #[must_use]
    pub fn options(&self, tls: &Tls) -> Option<TraceOptions> {
        let whole = self.otel_exporter_otlp_traces_endpoint.clone();
        let endpoint = whole.or_else(|| self.otel_exporter_otlp_endpoint.as_ref().map(for_traces))?;
        let headers = self.otel_exporter_otlp_traces_headers.as_ref().or(self.otel_exporter_otlp_headers.as_ref());
        let options = TraceOptions {
            endpoint: endpoint.into(),
            headers: headers.map(|headers| headers.0.clone()).unwrap_or_default(),
            service_name: self.otel_service_name.clone(),
            tls: match &self.otel_exporter_otlp_certificate {
                Some(authorities) => Tls::new(Some(authorities.clone()), None),
                None => tls.clone(),
            },
        };
        let is_off = self.otel_sdk_disabled || self.otel_traces_exporter == Some(TracesExporter::None);
        (!is_off).then_some(options)
    }
}

/// How traces are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracesExporter {
    /// OTLP over HTTP.
    Otlp,
    /// Not at all.
    None,
}

/// The headers of requests to the collector. Their values are secrets.
#[derive(Clone)]
pub struct CollectorHeaders(HashMap<String, String>);

impl CollectorHeaders {
    fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let headers = entries.map(|entry| {
            let (name, value) = entry.split_once('=').ok_or("write name=value, separated by commas")?;
            let (name, value) = (name.trim(), value.trim());
            let value = percent_decode_str(value).decode_utf8().map_err(|_| "a value is not UTF-8")?;
            let is_name =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !is_name || value.contains(|c: char| !matches!(c, ' '..='~')) {
                return Err("a header has a name of letters, digits and dashes, and a value of ASCII characters");
            }
            Ok((name.to_ascii_lowercase(), value.into_owned()))
        });
        Ok(Self(headers.collect::<Result<_, &str>>()?))
    }
}

impl fmt::Debug for CollectorHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The URL for traces at a collector for all signals.
fn for_traces(collector: &Url) -> Url {
    let mut url = collector.clone();
    url.set_path(&format!("{}/{TRACES_PATH}", url.path().trim_end_matches('/')));
    url
}

fn collector_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("it must begin with http:// or https://, such as http://localhost:4318".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it must not have a user or password; use OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    Ok(url)
}

fn traces_exporter(text: &str) -> Result<TracesExporter, String> {
    match text {
        "otlp" => Ok(TracesExporter::Otlp),
        "none" => Ok(TracesExporter::None),
        _ => Err("it must be otlp or none; no other exporter is built in".to_owned()),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    text.to_ascii_lowercase().parse().map_err(|_| "it must be true or false".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str]) -> Result<TraceSettings, String> {
        use clap::{Command, FromArgMatches};
        let command = TraceSettings::augment_args(Command::new("offramp"));
        let matches =
            command.try_get_matches_from(["offramp"].iter().chain(arguments)).map_err(|error| error.to_string())?;
        TraceSettings::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn traces_are_off_without_an_endpoint_and_when_they_are_disabled() {
        #[track_caller]
        fn check(arguments: &[&str], expected: Option<&str>) {
            let options = settings(arguments).unwrap().options(&Tls::default());
            assert_eq!(options.map(|options| options.endpoint).as_deref(), expected);
        }
        check(&[], None);
        check(&["--otel-service-name=x"], None);
        check(&["--otel-exporter-otlp-endpoint=http://localhost:4318"], Some("http://localhost:4318/v1/traces"));
        check(&["--otel-exporter-otlp-endpoint=https://collector/otlp/"], Some("https://collector/otlp/v1/traces"));
        check(
            &["--otel-exporter-otlp-endpoint=http://a", "--otel-exporter-otlp-traces-endpoint=http://b/x"],
            Some("http://b/x"),
        );
        check(&["--otel-exporter-otlp-endpoint=http://a", "--otel-sdk-disabled=True"], None);
        check(&["--otel-exporter-otlp-endpoint=http://a", "--otel-traces-exporter=none"], None);
        check(&["--otel-exporter-otlp-endpoint=http://a", "--otel-traces-exporter=otlp"], Some("http://a/v1/traces"));
    }

    #[test]
    fn headers_are_secret() {
        let headers = "--otel-exporter-otlp-headers=Authorization=Basic%20c2VjcmV0, x-scope=1,";
        let settings = settings(&["--otel-exporter-otlp-endpoint=http://a", headers]).unwrap();
        let options = settings.options(&Tls::default()).unwrap();
        let expected = [("authorization", "Basic c2VjcmV0"), ("x-scope", "1")];
        assert_eq!(options.headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        let shown = format!("{settings:?} {options:?}");
        assert!(shown.contains("authorization") && !shown.contains("c2VjcmV0"), "{shown}");
    }

    #[test]
    fn invalid_values_are_errors_that_quote_no_secret() {
        #[track_caller]
        fn check(argument: &str, expected: &str) {
            let error = settings(&[argument]).unwrap_err();
            assert!(error.contains(expected) && !error.contains("c2VjcmV0"), "{error}");
        }
        check("--otel-exporter-otlp-endpoint=localhost:4317", "it must begin with http");
        check("--otel-exporter-otlp-endpoint=grpc://collector:4317", "it must begin with http");
        check("--otel-exporter-otlp-endpoint=http://user:c2VjcmV0@collector", "must not have a user");
        check("--otel-exporter-otlp-headers=c2VjcmV0", "write name=value");
        check("--otel-exporter-otlp-headers=a=c2VjcmV0%0a", "ASCII");
        check("--otel-traces-exporter=zipkin", "otlp or none");
        check("--otel-sdk-disabled=1", "true or false");
    }
}
