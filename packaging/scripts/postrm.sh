case $1 in
remove)
    reload_units
    say_where_the_state_is
    ;;
purge)
    if [ -n "$units" ] && command -v deb-systemd-helper >/dev/null; then
        deb-systemd-helper purge $units >/dev/null || true
        deb-systemd-helper unmask $units >/dev/null || true
    fi
    say_where_the_state_is
    ;;
esac
