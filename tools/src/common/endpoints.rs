//! The urls of gaggled: from the arguments, the configuration, the environment, or the defaults.

use std::path::PathBuf;

use clap::Args;
use gaggled_core::config::Settings;
use gaggled_gateways::url::{Url, UrlError, default_controlurl, default_directory, default_eventurl};

use crate::common::diagnostics;

/// The variable that names the control channel.
pub const CONTROL_VARIABLE: &str = "GAGGLED_CONTROL_URL";
/// The variable that names the event channel.
pub const EVENT_VARIABLE: &str = "GAGGLED_EVENT_URL";

/// Arguments for the urls of gaggled.
#[derive(Args, Clone, Debug, Default)]
pub struct EndpointArgs {
    /// The url of gaggled
    #[arg(short, long, value_name = "URL", global = true, conflicts_with = "config")]
    pub url: Option<String>,

    /// The configuration that gaggled was started with; its urls are used
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// Why the urls of gaggled are not known.
#[derive(Debug)]
pub enum EndpointError {
    /// The configuration cannot be used. The reasons have been printed.
    Rejected,
    /// A url that was given cannot be used.
    Given(UrlError),
    /// Nothing was given, and there is no default, or it cannot be used.
    Url(UrlError),
}

/// The urls of both channels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Urls {
    /// Where events are published.
    pub event: String,
    /// Where requests are answered.
    pub control: String,
}

/// The urls of a configuration, or their defaults.
pub fn of_settings(settings: &Settings) -> Result<Urls, UrlError> {
    let given = |url: &Option<String>, default: fn(&std::path::Path) -> String| match url {
        Some(url) => Ok(url.clone()),
        None => default_directory().map(|directory| default(&directory)),
    };
    let urls = Urls {
        event: given(&settings.eventurl, default_eventurl)?,
        control: given(&settings.controlurl, default_controlurl)?,
    };
    Url::parse(&urls.event, &settings.insecure)?;
    Url::parse(&urls.control, &settings.insecure)?;
    Ok(urls)
}

/// The directory of the journal that a configuration means: `/var/lib/gaggled` for root, `$XDG_STATE_HOME/gaggled` for
/// others.
pub fn state_directory(settings: &Settings) -> Result<PathBuf, String> {
    if let Some(path) = &settings.state_directory {
        return Ok(PathBuf::from(path));
    }
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/gaggled".into());
    }
    let set = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    base.map(|base| base.join("gaggled"))
        .ok_or_else(|| "neither XDG_STATE_HOME nor HOME is set: set one, or give gaggled.state_directory".to_owned())
}

impl EndpointArgs {
    /// The url of the control channel.
    pub fn control(&self) -> Result<String, EndpointError> {
        self.find(CONTROL_VARIABLE, |urls| urls.control.clone())
    }

    /// The urls of both channels, for a tool that follows events. A url that is given is that of the events.
    pub fn both(&self, control: Option<&String>) -> Result<Urls, EndpointError> {
        let event = self.find(EVENT_VARIABLE, |urls| urls.event.clone())?;
        let elsewhere = Self { url: control.cloned(), config: self.config.clone() };
        Ok(Urls { event, control: elsewhere.find(CONTROL_VARIABLE, |urls| urls.control.clone())? })
    }

    fn find(&self, variable: &str, pick: fn(&Urls) -> String) -> Result<String, EndpointError> {
        if let Some(url) = &self.url {
            // Whether an insecure url is acceptable was decided in the configuration of the daemon.
            Url::parse(url, std::slice::from_ref(url)).map_err(EndpointError::Given)?;
            return Ok(url.clone());
        }
        if let Some(path) = &self.config {
            let (parsed, _) = diagnostics::load(path).map_err(|_| EndpointError::Rejected)?;
            return of_settings(&parsed.config.gaggled).map(|urls| pick(&urls)).map_err(EndpointError::Url);
        }
        match std::env::var(variable) {
            Ok(url) if !url.is_empty() => Ok(url),
            _ => of_settings(&Settings::default()).map(|urls| pick(&urls)).map_err(EndpointError::Url),
        }
    }
}

impl EndpointError {
    /// The exit status of a tool that does not know the urls.
    pub fn code(&self) -> u8 {
        match self {
            Self::Rejected => 1,
            Self::Given(_) => 2,
            Self::Url(_) => 4,
        }
    }

    /// Prints the error.
    pub fn print(&self) {
        match self {
            Self::Rejected => eprintln!("Help: -u URL reaches a running gaggled without its configuration"),
            Self::Given(error) | Self::Url(error) => eprintln!("Error: {error}"),
        }
    }
}
