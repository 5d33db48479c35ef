//! A Java service: a Debian root filesystem with a Java runtime and Tomcat, and a script that starts it and ends it once it serves.

use super::layout::{ImageConfig, Layout, LayoutWriter};
use super::real::{app_tar, debian_tar};
use crate::cache::built_once;
use anyhow::Result;

const PACKAGES: &str = "openjdk-17-jre-headless,tomcat10,ca-certificates";
/// Tomcat logs to its standard error, and says there when it serves.
const MAIN: &str = "\
export CATALINA_HOME=/usr/share/tomcat10 CATALINA_BASE=/tmp/tomcat JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64
mkdir -p $CATALINA_BASE/logs $CATALINA_BASE/temp $CATALINA_BASE/work $CATALINA_BASE/webapps
cp -r /etc/tomcat10 $CATALINA_BASE/conf
echo 'lapwing: first output'
mkfifo /tmp/log
/usr/share/tomcat10/bin/catalina.sh run >/tmp/log 2>&1 &
while read -r line; do
    case \"$line\" in *'Server startup in'*) echo 'lapwing: ready, tomcat serves' && break ;; esac
done </tmp/log
kill -9 $!
";
/// What it prints first, and what the line begins with that it prints once Tomcat serves.
pub const SERVICE_OUTPUTS: [&str; 2] = ["lapwing: first output", "lapwing: ready"];

const CONFIG: ImageConfig<'static> = ImageConfig {
    entrypoint: &["/bin/sh"],
    cmd: &["/app/main.sh"],
    env: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    working_dir: "/",
};

/// The image of a Java service, above 100 MB compressed. x86-64.
pub fn service() -> Result<Layout> {
    let base = debian_tar(PACKAGES)?;
    let sources: [&[u8]; 2] = [MAIN.as_bytes(), include_bytes!("layout.rs")];
    let key = super::recipe_key("service", &[&sources[..], &[base.as_os_str().as_encoded_bytes()]].concat());
    let dir = built_once("images", &key, |dir| {
        let mut image = LayoutWriter::new(dir)?;
        image.layer_from_file(&base)?;
        image.layer_from_file(&app_tar(dir, &[("main.sh", MAIN)])?)?;
        std::fs::remove_dir_all(dir.join("work"))?;
        image.finish(&CONFIG).map(drop)
    })?;
    Layout::open(&dir)
}
