//! The node's own credentials out of kubelet's providers and docker's files, through to a registry that wants them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapwing_plugins::registry::{Credential, KubeletConfig, RegistriesConfig};

use crate::fake::{Fake, blob, challenge, status, with_body};

/// A registry that gives tokens to the user whose password stands in `password`.
async fn with_password(password: &Path) -> Fake {
    let password = password.to_owned();
    Fake::start(move |seen| {
        let password = std::fs::read_to_string(&password).unwrap();
        let wanted = format!("Basic {}", STANDARD.encode(format!("user:{password}")));
        match (seen.path(), seen.header("authorization")) {
            ("/token", Some(given)) if given == wanted => {
                with_body(200, &[], format!(r#"{{"token":"{password}","expires_in":300}}"#))
            }
            ("/token", _) => status(401, &[]),
            (_, Some(given)) if given == format!("Bearer {password}") => blob(seen),
            _ => challenge(seen),
        }
    })
    .await
}

struct Provider {
    directory: tempfile::TempDir,
}

impl Provider {
    /// One that answers with what stands in `password`, and writes down what it was asked.
    fn new(registry: &str, matching: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let script = format!(
            r#"#!/bin/sh
cat >>{at}/asked
echo >>{at}/asked
cat <<END
{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry",
"cacheDuration":"$DURATION","auth":{{"{registry}":{{"username":"user","password":"$(cat {at}/password)"}}}}}}
END
"#
        );
        let program = directory.path().join("provider");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let config = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: provider\n  \
             matchImages:\n  - \"{matching}\"\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  env:\n  - name: DURATION\n    \
             value: 6h0m0s\n"
        );
        std::fs::write(directory.path().join("config.yaml"), config).unwrap();
        std::fs::write(directory.path().join("password"), "first").unwrap();
        Self { directory }
    }

    fn config(&self) -> RegistriesConfig {
        let kubelet = KubeletConfig {
            config: self.directory.path().join("config.yaml"),
            bin_dir: self.directory.path().to_owned(),
        };
        RegistriesConfig { kubelet, ..RegistriesConfig::default() }
    }

    fn asked(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.directory.path().join("asked")).unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn a_credential_provider_is_asked_once_and_again_when_what_it_said_is_refused() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "first").unwrap();
    let fake = with_password(password.path()).await;
    let provider = Provider::new(&fake.address.to_string(), &fake.address.to_string());
    let fetch = |registries: std::sync::Arc<lapwing_plugins::registry::Registries>| {
        let fake = &fake;
        async move { fake.fetch(&registries, Credential::Configured, 0..1).await }
    };
    let registries = fake.listed_in(provider.config());
    for _ in 0..3 {
        fetch(registries.clone()).await.unwrap();
    }
    let asked = provider.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0]["kind"], "CredentialProviderRequest");
    assert_eq!(asked[0]["apiVersion"], "credentialprovider.kubelet.k8s.io/v1");
    assert_eq!(asked[0]["image"], format!("{}/team/app", fake.address));

    for file in [password.path(), &provider.directory.path().join("password")] {
        std::fs::write(file, "second").unwrap();
    }
    fetch(registries).await.unwrap();
    assert_eq!(provider.asked().len(), 2);
}

#[tokio::test]
async fn a_provider_for_other_images_is_not_run() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "first").unwrap();
    let fake = with_password(password.path()).await;
    let provider = Provider::new(&fake.address.to_string(), "*.registry.example");
    let registries = fake.listed_in(provider.config());
    assert!(fake.fetch(&registries, Credential::Configured, 0..1).await.is_err());
    assert!(provider.asked().is_empty());
}

#[tokio::test]
async fn a_provider_that_cannot_be_used_is_named() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "first").unwrap();
    let fake = with_password(password.path()).await;
    let own = fake.address.to_string();
    let cases: [(&str, &str, &str); 4] = [
        ("provider", "#!/bin/sh\nexit 3\n", "failed"),
        ("provider", "#!/bin/sh\necho hunter2\n", "not a CredentialProviderResponse"),
        ("provider", "#!/bin/sh\necho '{\"kind\":\"Other\",\"cacheKeyType\":\"Image\"}'\n", "answers with"),
        ("config.yaml", "kind: Pod\nproviders: []\n", "not CredentialProviderConfig"),
    ];
    for (file, content, hint) in cases {
        let provider = Provider::new(&own, &own);
        std::fs::write(provider.directory.path().join(file), content).unwrap();
        let error = fake.fetch(&fake.listed_in(provider.config()), Credential::Configured, 0..1).await.unwrap_err();
        let error = format!("{error:?}");
        assert!(error.contains(hint) && !error.contains("hunter2"), "{content}: {error}");
    }
}

#[tokio::test]
async fn one_docker_config_serves_all_registries_that_have_none_of_their_own() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "first").unwrap();
    let fake = with_password(password.path()).await;
    let secrets = tempfile::tempdir().unwrap();
    let mounted = secrets.path().join("pull-secret");
    std::fs::create_dir(&mounted).unwrap();
    let text = format!(r#"{{"auths":{{"http://{}/v2/":{{"username":"user","password":"first"}}}}}}"#, fake.address);
    std::fs::write(mounted.join(".dockerconfigjson"), text).unwrap();
    let config = RegistriesConfig { docker_config: secrets.path().to_owned(), ..RegistriesConfig::default() };
    fake.fetch(&fake.listed_in(config), Credential::Configured, 0..1).await.unwrap();
}
