case $1 in
configure)
    make_users_and_folders
    reload_rules
    for unit in $units; do
        if command -v deb-systemd-helper >/dev/null; then
            # What the administrator has disabled stays disabled.
            deb-systemd-helper unmask "$unit" >/dev/null || true
            if deb-systemd-helper --quiet was-enabled "$unit"; then
                deb-systemd-helper enable "$unit" >/dev/null || true
            else
                deb-systemd-helper update-state "$unit" >/dev/null || true
            fi
        elif [ -z "${2-}" ]; then
            systemctl --root=/ enable "$unit"
        fi
    done
    reload_units
    if [ -n "${2-}" ]; then
        act_on_units try-restart $(services)
    else
        act_on_units start $units
    fi
    ;;
esac
