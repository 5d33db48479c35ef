//! Who listens on a port of this machine. On one with several users anybody may listen where no node does, and would be told
//! their secrets; so a node that was not named by the user is believed only if it runs as root or as himself.

use std::fs;

/// `LISTEN`, in `/proc/net/tcp` (proc_net_tcp(5)).
const LISTEN: &str = "0A";

/// Whether all who listen on `port`, at whatever address, are root or this user. Nobody: yes, since nobody hears anything.
pub(super) fn is_trusted(port: u16) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| listeners(table, port)).all(|user| user == 0 || user == own)
}

/// The users who listen on a port.
fn listeners(table: &str, port: u16) -> Vec<u32> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let (_, own) = local.rsplit_once(':')?;
        let matches = state == LISTEN && u16::from_str_radix(own, 16).ok()? == port;
        fields.nth(3)?.parse().ok().filter(|_| matches)
    };
    table.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_the_kernel() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1BA8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 45163 1 0 100 0 0 10 0\n   \
            1: 0100007F:1BA8 0100007F:C000 01 00000000:00000000 00:00000000 00000000  1001        0 45163 1 0 100 0 0 10 0\n   \
            2: 00000000000000000000000001000000:1BA9 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n";
        assert_eq!(listeners(table, 7080), [1000]);
        assert_eq!(listeners(table, 7081), [0]);
        assert_eq!(listeners(table, 7082), Vec::<u32>::new());
        assert_eq!(listeners("", 7080), Vec::<u32>::new());
    }

    #[test]
    fn this_process_is_trusted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        assert_eq!(listeners(&table, port), [rustix::process::geteuid().as_raw()]);
        assert!(is_trusted(port));
    }
}
