//! Platforms in the image specification's words: `os/architecture`, or with a variant.

use oci_spec::image::Descriptor;

/// Of this machine; the words are Go's.
pub(crate) fn own() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    format!("linux/{architecture}")
}

/// Whether an index says that one of its manifests is for that platform; a variant counts only where it is asked for.
pub(crate) fn is_for(child: &Descriptor, wanted: &str) -> bool {
    let Some(platform) = child.platform() else { return false };
    let plain = format!("{}/{}", platform.os(), platform.architecture());
    let full = platform.variant().as_ref().map(|variant| format!("{plain}/{variant}"));
    wanted == plain || Some(wanted) == full.as_deref()
}

#[cfg(test)]
mod tests {
    use lapwing_p2p::digest::Digest;

    use super::*;

    fn child(platform: &str) -> Descriptor {
        let (kind, digest) = ("application/vnd.oci.image.manifest.v1+json", Digest::of(platform.as_bytes()));
        let text = format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7{platform}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_platform_is_met_by_its_words() {
        let arm = child(r#","platform":{"os":"linux","architecture":"arm","variant":"v7"}"#);
        assert!(is_for(&arm, "linux/arm") && is_for(&arm, "linux/arm/v7"));
        assert!(!is_for(&arm, "linux/arm/v6") && !is_for(&arm, "linux/arm64") && !is_for(&arm, "linux/amd64"));
        assert!(!is_for(&arm, "linux"));
        assert!(!is_for(&child(""), "linux/amd64"));
        let (os, architecture) = own().split_once('/').map(|(os, arch)| (os.to_owned(), arch.to_owned())).unwrap();
        let own_child = child(&format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#));
        assert!(is_for(&own_child, &own()));
    }
}
