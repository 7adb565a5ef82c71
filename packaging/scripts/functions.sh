# What the scripts of both formats share. The values above are the package's own. Nothing here asks
# anything, and nothing touches a VM: VMs are units of their own, which no package brings.

systemd_runs() {
    [ -d /run/systemd/system ]
}

# Of the package's units, those that are restarted on upgrade: sockets stay open, so that no
# connection is refused meanwhile.
services() {
    for unit in $units; do
        case $unit in *.service) printf '%s ' "$unit" ;; esac
    done
}

make_users_and_folders() {
    if [ -n "$sysusers" ]; then
        systemd-sysusers "$sysusers"
    fi
    if [ -n "$tmpfiles" ]; then
        # It insists on /proc, which a bare chroot lacks; the unit makes its folder by itself then.
        if [ -e /proc/self ]; then
            systemd-tmpfiles --create "$tmpfiles"
        else
            echo "$package: no /proc here; $state is made when the service starts first" >&2
        fi
    fi
}

reload_rules() {
    if [ "$udev" = yes ] && [ -e /run/udev/control ]; then
        udevadm control --reload || echo "$package: udev did not reload its rules" >&2
        udevadm trigger --action=change --subsystem-match=misc --subsystem-match=vfio ||
            echo "$package: udev did not apply the rules; they apply after a restart" >&2
    fi
}

reload_units() {
    if systemd_runs; then
        systemctl --system daemon-reload || echo "$package: systemd did not reload its units" >&2
    fi
}

# A service that does not start is the administrator's to see, not a reason to leave the package
# half installed.
act_on_units() {
    action=$1
    shift
    if [ $# -gt 0 ] && systemd_runs; then
        if command -v deb-systemd-invoke >/dev/null; then
            # It heeds policy-rc.d.
            deb-systemd-invoke "$action" "$@" >/dev/null || say_failed "$action" "$@"
        else
            systemctl "$action" "$@" || say_failed "$action" "$@"
        fi
    fi
}

say_failed() {
    echo "$package: systemctl $* failed; see systemctl status and journalctl" >&2
}

# Whatever goes, what belongs to tenants and what proves the past stays until a person removes it.
say_where_the_state_is() {
    if [ -n "$state" ] && [ -d "$state" ]; then
        echo "$package: $state stays; it holds $state_holds." >&2
        echo "$package: nothing removes it but you: rm -r $state" >&2
    fi
}
