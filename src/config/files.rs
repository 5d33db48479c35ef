//! Files that a configuration names, and that must be there for it to work.

use std::path::Path;

use super::Config;

impl Config {
    /// Keys and what they name.
    fn files(&self) -> Vec<(String, &Path)> {
        let mut files: Vec<(String, &Path)> = vec![
            ("proxy.ca_file".into(), &self.proxy.ca_file),
            ("proxy.ca_key_file".into(), &self.proxy.ca_key_file),
            ("proxy.upstream_ca_file".into(), &self.proxy.upstream_ca_file),
            ("traces.headers_file".into(), &self.traces.headers_file),
            ("trust.rights_key_file".into(), &self.trust.rights_key_file),
        ];
        // Once a machine has joined, its token is of no use any more.
        if !self.identity.certificate().exists() {
            files.push(("identity.token_file".into(), &self.identity.token_file));
        }
        for (name, webhook) in &self.preheat.webhooks {
            files.push((format!("preheat.webhooks.{name:?}.secret_file"), &webhook.secret_file));
        }
        for (name, registry) in &self.registries.hosts {
            let named = [
                ("password_file", &registry.password_file),
                ("docker_config", &registry.docker_config),
                ("ca_file", &registry.ca_file),
            ];
            let given = named.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?)));
            files.extend(given.map(|(key, path)| (format!("registries.hosts.{name:?}.{key}"), path)));
        }
        files.retain(|(_, path)| !path.as_os_str().is_empty());
        files
    }

    /// What this machine lacks of them, a line each: here, a daemon would not work with this configuration.
    pub(crate) fn missing_files(&self) -> Vec<String> {
        let missing = |(key, path): (String, &Path)| {
            let error = std::fs::File::open(path).err()?;
            Some(format!("{key}: {}: {error}", path.display()))
        };
        self.files().into_iter().filter_map(missing).collect()
    }
}
