//! System calls that are refused (seccomp(2)): EPERM, so that what tries one goes on as best it can.
//!
//! The list names what nothing here needs and what has been a way to more rights; what is not on it is allowed, so that another version of
//! the C library or of the kernel breaks nothing. Calls of another architecture or of x32 end the process: the list does not speak of them.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// Who is filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A daemon that starts no programs.
    Alone,
    /// A daemon that starts the programs of its configuration.
    WithPrograms,
    /// The mounter: it mounts, and has no network.
    Mounter,
}

/// Calls that only the mounter needs.
const MOUNTING: [i64; 6] =
    [libc::SYS_mount, libc::SYS_umount2, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_move_mount];

/// Calls without which there is no new socket. The mounter has the one that it was given, and starts the holder, which accepts at another.
const SOCKETS: [i64; 5] = [libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen];

const PROGRAMS: [i64; 2] = [libc::SYS_execve, libc::SYS_execveat];

/// open_tree_attr(2), Linux 6.15; the same number everywhere.
const OPEN_TREE_ATTR: i64 = 467;

/// Calls that nobody here needs.
const NEVER: [i64; 51] = [
    // Other mounts, roots and namespaces.
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_mount_setattr,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // The kernel's own insides.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_personality,
    // Files by other ways than their paths, and device files.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const NEVER_HERE: [i64; 7] = [
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: [i64; 0] = [];

/// Kinds of sockets that daemons use; of others the kernel's code has had the most mistakes.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// What makes clone(2) make a namespace. (CLONE_NEWTIME is for unshare(2) alone.)
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Has the kernel refuse what `role` does not need, to this thread and all that it starts, for good.
pub(super) fn refuse(role: Role) -> anyhow::Result<()> {
    // Its arguments are in memory, where a filter sees nothing: the C library goes on with clone(2) when there is no such call.
    let without_clone3 = [(libc::SYS_clone3, Vec::new())].into();
    for (rules, number) in [(without_clone3, libc::ENOSYS), (rules(role)?, libc::EPERM)] {
        seccompiler::apply_filter(&program(rules, number)?)?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(role: Role) -> Result<Rules, seccompiler::BackendError> {
    let more: &[i64] = match role {
        Role::Alone => &[&MOUNTING[..], &PROGRAMS].concat(),
        Role::WithPrograms => &MOUNTING,
        Role::Mounter => &SOCKETS,
    };
    let mut rules: Rules = NEVER.iter().chain(&NEVER_HERE).chain(more).map(|call| (*call, Vec::new())).collect();
    let dword = SeccompCmpArgLen::Dword;
    let namespaces = NAMESPACES.into_iter().map(|flag| {
        let flag = flag.cast_unsigned().into();
        SeccompRule::new(vec![SeccompCondition::new(0, dword.clone(), SeccompCmpOp::MaskedEq(flag), flag)?])
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    let others = FAMILIES
        .into_iter()
        .map(|family| SeccompCondition::new(0, dword.clone(), SeccompCmpOp::Ne, family.cast_unsigned().into()));
    let of_others = SeccompRule::new(others.collect::<Result<_, _>>()?)?;
    rules.entry(libc::SYS_socket).or_insert_with(|| vec![of_others]);
    Ok(rules)
}

fn program(rules: Rules, number: i32) -> anyhow::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = SeccompAction::Errno(number.cast_unsigned());
    let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?.try_into()?;
    Ok([without_x32(), filter].concat())
}

/// x32 has the architecture's own name, and a bit in the call's number (`__X32_SYSCALL_BIT`).
fn without_x32() -> BpfProgram {
    if cfg!(not(target_arch = "x86_64")) {
        return Vec::new();
    }
    let instruction = |code: u32, jf, k| sock_filter { code: code as u16, jt: 0, jf, k };
    vec![
        // `seccomp_data` begins with the number.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, 0x4000_0000),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_is_refused_what_the_others_need() {
        let refused = |role, call| rules(role).unwrap().get(&call).is_some_and(Vec::is_empty);
        for role in [Role::Alone, Role::WithPrograms, Role::Mounter] {
            for call in [libc::SYS_ptrace, libc::SYS_setns, libc::SYS_bpf, libc::SYS_open_tree] {
                assert!(refused(role, call), "{role:?} {call}");
            }
            assert_eq!(refused(role, libc::SYS_mount), role != Role::Mounter);
            assert_eq!(refused(role, libc::SYS_socket), role == Role::Mounter);
            assert_eq!(refused(role, libc::SYS_execve), role == Role::Alone);
            assert_eq!(rules(role).unwrap()[&libc::SYS_clone].len(), NAMESPACES.len());
            assert!(program(rules(role).unwrap(), libc::EPERM).unwrap().len() < 4096, "the kernel's limit");
        }
    }

    /// In threads of their own, which the filters stay with.
    #[test]
    fn what_is_refused_is_refused_by_the_kernel() {
        let tried = std::thread::spawn(|| {
            refuse(Role::Alone).unwrap();
            let socket = rustix::net::socket(rustix::net::AddressFamily::VSOCK, rustix::net::SocketType::STREAM, None);
            let unshared = rustix::mount::unmount("/nonexistent", rustix::mount::UnmountFlags::DETACH);
            let run = std::process::Command::new("true").status().map_err(|error| error.raw_os_error());
            // What must go on working.
            let worked = std::thread::spawn(|| std::net::TcpListener::bind("127.0.0.1:0").is_ok()).join().unwrap();
            (socket.err(), unshared.err(), run.err().flatten(), worked)
        });
        let perm = Some(rustix::io::Errno::PERM);
        assert_eq!(tried.join().unwrap(), (perm, perm, Some(libc::EPERM), true));
        let tried = std::thread::spawn(|| {
            refuse(Role::Mounter).unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").map_err(|error| error.raw_os_error());
            (socket.err().flatten(), std::process::Command::new("true").status().is_ok_and(|status| status.success()))
        });
        assert_eq!(tried.join().unwrap(), (Some(libc::EPERM), true));
    }
}
