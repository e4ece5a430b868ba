# Makes of the Debian userland what Ansible and dnf take for Oracle Linux $EL_FULL.
set -eu
mkdir -p /etc/yum.repos.d /var/lib/rpm /etc/dnf /etc/rpm
mv /tmp/oracle.repo /etc/yum.repos.d/oracle-linux.repo
mv /tmp/dnf.conf /etc/dnf/dnf.conf
sed -i "s/^enabled.*/enabled = 0/" /etc/dnf/plugins/local.conf
# Debian's rpm has its database in the home directory.
printf '%%_dbpath /var/lib/rpm\n%%dist .el%s\n%%rhel %s\n' "$EL" "$EL" > /etc/rpm/macros.testbed
rpm --initdb
rpmkeys --import /etc/pki/rpm-gpg/RPM-GPG-KEY-oracle
# What the distribution has from the start: its release, and the runc that containerd.io conflicts with.
rpm -i /srv/base/Packages/oraclelinux-release-*.rpm /srv/base/Packages/runc-*.rpm
# No trace of the other package manager: modules that look for one would find it.
dpkg --purge python3-apt >/dev/null 2>&1 || true
for name in apt apt-get apt-cache dpkg dpkg-query; do mv /usr/bin/$name /usr/lib/$name.testbed; done
rm -f /etc/debian_version /etc/os-release /usr/lib/os-release
cat > /usr/lib/os-release <<O
NAME="Oracle Linux Server"
VERSION="$EL_FULL"
ID="ol"
ID_LIKE="fedora"
VARIANT="Server"
VARIANT_ID="server"
VERSION_ID="$EL_FULL"
PLATFORM_ID="platform:el$EL"
PRETTY_NAME="Oracle Linux Server $EL_FULL"
ANSI_COLOR="0;31"
CPE_NAME="cpe:/o:oracle:linux:$EL:${EL_FULL#*.}:server"
O
ln -s ../usr/lib/os-release /etc/os-release
echo "Oracle Linux Server release $EL_FULL" > /etc/oracle-release
echo "Red Hat Enterprise Linux release $EL_FULL (Plow)" > /etc/redhat-release
mkdir -p /usr/libexec && ln -sf /usr/bin/python3 /usr/libexec/platform-python
