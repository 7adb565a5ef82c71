# On upgrade everything runs on until postinst restarts it.
case $1 in
remove | deconfigure)
    act_on_units stop $units
    ;;
esac
