//! The command line of the daemon.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use wrenn_proto::http::ENVD_PORT;

use crate::auth::AccessToken;

pub const USAGE: &str = "\
wrenn-envd: the daemon inside a sandbox

Usage: wrenn-envd [OPTIONS]

Options:
  --address ADDRESS      Address to listen on [default: 0.0.0.0]
  --port PORT            Port to listen on [default: 49983]
  --token-file PATH      File with the access token that requests must carry
  --default-user NAME    User of requests that name none [default: user]
  --state-file PATH      Keep what /init sets here, for the next daemon
  --version              Print the version and leave
  --help                 Print this and leave
";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    pub access_token: Option<AccessToken>,
    pub default_user: String,
    pub state_file: Option<PathBuf>,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Serve(Config),
    PrintVersion,
    PrintUsage,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("unknown option '{0}'")]
    Unknown(String),
    #[error("option '{0}' needs a value")]
    NoValue(String),
    #[error("'{value}' is not a valid value of '{option}'")]
    Value { option: String, value: String },
    #[error("cannot read the token file {path}")]
    Token {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the token file {path} is empty")]
    EmptyToken { path: PathBuf },
}

impl Config {
    /// Reads arguments, without the program's name: `--option value` or `--option=value`.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Action, ConfigError> {
        let mut address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut port = ENVD_PORT;
        let mut access_token = None;
        let mut default_user = "user".to_owned();
        let mut state_file = None;

        let mut arguments = arguments
            .into_iter()
            .map(|text| text.to_string_lossy().into_owned());
        while let Some(argument) = arguments.next() {
            let (option, inline) = match argument.split_once('=') {
                Some((option, value)) => (option.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| arguments.next())
                    .ok_or_else(|| ConfigError::NoValue(option.clone()))
            };
            match option.as_str() {
                "--address" => address = parse(&option, value()?)?,
                "--port" => port = parse(&option, value()?)?,
                "--default-user" => default_user = value()?,
                "--token-file" => access_token = Some(read_token(value()?.into())?),
                "--state-file" => state_file = Some(value()?.into()),
                "--version" => return Ok(Action::PrintVersion),
                "--help" | "-h" => return Ok(Action::PrintUsage),
                _ => return Err(ConfigError::Unknown(option)),
            }
        }
        Ok(Action::Serve(Self {
            listen: SocketAddr::new(address, port),
            access_token,
            default_user,
            state_file,
        }))
    }
}

fn parse<T: std::str::FromStr>(option: &str, value: String) -> Result<T, ConfigError> {
    value.parse().map_err(|_| ConfigError::Value {
        option: option.to_owned(),
        value,
    })
}

fn read_token(path: PathBuf) -> Result<AccessToken, ConfigError> {
    let text = fs::read_to_string(&path).map_err(|source| ConfigError::Token {
        path: path.clone(),
        source,
    })?;
    AccessToken::new(text.trim()).ok_or(ConfigError::EmptyToken { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(arguments: &[&str]) -> Result<Action, ConfigError> {
        Config::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn reads_both_spellings() {
        let Action::Serve(config) =
            parse_all(&["--port", "1", "--address=127.0.0.1", "--default-user=me"]).unwrap()
        else {
            panic!("not a server");
        };
        assert_eq!(config.listen.to_string(), "127.0.0.1:1");
        assert_eq!(config.default_user, "me");
        assert_eq!(parse_all(&["--version"]).unwrap(), Action::PrintVersion);
    }

    #[test]
    fn says_what_it_does_not_understand() {
        assert!(matches!(
            parse_all(&["--prot=1"]),
            Err(ConfigError::Unknown(_))
        ));
        assert!(matches!(
            parse_all(&["--port"]),
            Err(ConfigError::NoValue(_))
        ));
        assert!(matches!(
            parse_all(&["--port=x"]),
            Err(ConfigError::Value { .. })
        ));
        assert!(matches!(
            parse_all(&["--token-file=/no/file"]),
            Err(ConfigError::Token { .. })
        ));
    }

    #[test]
    fn a_token_file_may_end_with_a_line_break() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret\n").unwrap();
        let option = format!("--token-file={}", file.path().display());
        let Action::Serve(config) = parse_all(&[&option]).unwrap() else {
            panic!("not a server")
        };
        assert_eq!(config.access_token, AccessToken::new("secret"));
        fs::write(file.path(), "\n").unwrap();
        assert!(matches!(
            parse_all(&[&option]),
            Err(ConfigError::EmptyToken { .. })
        ));
    }
}
