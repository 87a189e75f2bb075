//! What of a container image's configuration makes sense for a sandbox.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::image::Config;

/// Programs that wait for somebody to type, if they are given nothing to do: an image that
/// starts one means a terminal, which nobody sits at after a boot.
const PROMPTS: &[&str] = &[
    "ash", "bash", "dash", "fish", "ghci", "iex", "irb", "julia", "jshell", "node", "perl", "php",
    "psql", "python", "python2", "python3", "R", "sh", "zsh",
];

/// Variables that belong to a user or a terminal and not to an image.
const NOT_TAKEN: &[&str] = &["HOME", "HOSTNAME", "TERM"];

/// How processes start, as an image tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Defaults {
    pub(super) env: BTreeMap<String, String>,
    pub(super) user: Option<String>,
    pub(super) start_command: Option<String>,
    pub(super) working_directory: Option<String>,
}

impl Defaults {
    pub(super) fn of(config: Option<&Config>) -> Self {
        let Some(config) = config else {
            return Self::default();
        };
        let env = config.env().iter().flatten().filter_map(|variable| {
            let (name, value) = variable.split_once('=')?;
            let taken = !name.is_empty() && !NOT_TAKEN.contains(&name);
            taken.then(|| (name.to_owned(), value.to_owned()))
        });
        let directory = config.working_dir().as_deref().filter(|directory| {
            // The root says no more than that nothing was set.
            directory.starts_with('/') && *directory != "/"
        });
        Self {
            env: env.collect(),
            user: config.user().clone().filter(|user| !user.is_empty()),
            start_command: start_command(
                config.entrypoint().as_deref().unwrap_or_default(),
                config.cmd().as_deref().unwrap_or_default(),
            ),
            working_directory: directory.map(str::to_owned),
        }
    }
}

fn start_command(entrypoint: &[String], cmd: &[String]) -> Option<String> {
    let words: Vec<&str> = entrypoint.iter().chain(cmd).map(String::as_str).collect();
    let is_prompt = |word: &str| {
        let program = Path::new(word).file_name().and_then(|name| name.to_str());
        program.is_some_and(|program| PROMPTS.contains(&program))
    };
    if cmd.is_empty() && entrypoint.is_empty() {
        return None;
    }
    // Some images wrap the prompt, as in `docker-entrypoint.sh node`.
    if let [command] = cmd
        && is_prompt(command)
    {
        return None;
    }
    if let [only] = words[..]
        && is_prompt(only)
    {
        return None;
    }
    // Only a zero byte cannot be quoted, and no command can hold one.
    shlex::try_join(words).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_service_is_started_where_it_wants_to_be() {
        let defaults = Defaults::of(Some(&config(
            r#"{"User":"redis","Env":["PATH=/bin","A=b=c","HOME=/root","bad"],
                "Entrypoint":["/entry.sh"],"Cmd":["redis-server","a b"],"WorkingDir":"/data"}"#,
        )));
        assert_eq!(
            defaults.start_command.as_deref(),
            Some("/entry.sh redis-server 'a b'")
        );
        assert_eq!(defaults.working_directory.as_deref(), Some("/data"));
        assert_eq!(defaults.user.as_deref(), Some("redis"));
        let env: Vec<_> = defaults
            .env
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        assert_eq!(env, ["A=b=c", "PATH=/bin"]);
    }

    #[test]
    fn a_prompt_is_not_started() {
        for json in [
            r#"{"Cmd":["bash"]}"#,
            r#"{"Cmd":["/usr/bin/python3"]}"#,
            r#"{"Entrypoint":["docker-entrypoint.sh"],"Cmd":["node"]}"#,
            r#"{"Entrypoint":["/bin/sh"]}"#,
            r#"{"User":"","WorkingDir":"/"}"#,
        ] {
            assert_eq!(
                Defaults::of(Some(&config(json))),
                Defaults::default(),
                "{json}"
            );
        }
        let runs = config(r#"{"Cmd":["python3","-m","http.server"]}"#);
        assert_eq!(
            Defaults::of(Some(&runs)).start_command.as_deref(),
            Some("python3 -m http.server")
        );
    }
}
