#!/usr/bin/env bash
# The repositories: docker-ce and its parts made of Debian's own Docker, so that what a role installs from here really
# runs; the NVIDIA Container Toolkit made of the stand-ins; and a base repository for the RPM family.
#
#   download.docker.com/linux/{centos,rhel,debian}
#   nvidia.github.io/libnvidia-container/stable/{rpm,deb}
#   rpm/el9/base                            what the distribution itself would have
#   keys/NAME.asc, keys/NAME.fingerprint    docker, nvidia, base, and one that signed nothing: wrong
set -euo pipefail
out=$1
work=$(mktemp -d)
cd "$work"
mkdir -p "$out/keys"
export GNUPGHOME=$work/gnupg GPG_TTY=none
mkdir -m700 "$GNUPGHOME"
for name in docker nvidia base wrong; do
    gpg --batch --quiet --gen-key <<KEY
%no-protection
Key-Type: RSA
Key-Length: 2048
Name-Real: Test bed $name
Name-Email: $name@example.invalid
Expire-Date: 0
%commit
KEY
    gpg --armor --export "$name@example.invalid" > "$out/keys/$name.asc"
    gpg --list-keys --with-colons "$name@example.invalid" | awk -F: '/^fpr/ { print $10; exit }' > "$out/keys/$name.fingerprint"
done

for package in docker.io containerd runc tini git-lfs git; do
    mkdir -p "x/$package"
    dpkg -x /debs/"$package"_*.deb "x/$package"
done
rm -rf x/*/usr/share/{doc,man,lintian,bash-completion,zsh,fish,locale} x/*/etc/init.d x/*/etc/default
version=$(dpkg-deb -f /debs/docker.io_*.deb Version | sed 's/^\(.*:\)\?\([0-9.]*\).*/\2/')
containerd=$(dpkg-deb -f /debs/containerd_*.deb Version | sed 's/^\([0-9.]*\).*/\1/')
lfs=$(dpkg-deb -f /debs/git-lfs_*.deb Version | sed 's/-.*//')
git=$(dpkg-deb -f /debs/git_*.deb Version | sed 's/^.*://; s/-.*//')
toolkit=1.17.8

# Trees of the packages, where Docker's own have their files.
mkdir -p t/docker-ce/usr/bin t/docker-ce-cli/usr/bin t/containerd.io/etc/containerd t/empty
cp -a x/docker.io/. t/docker-ce/
mv t/docker-ce/usr/bin/docker t/docker-ce-cli/usr/bin/
mv t/docker-ce/usr/sbin/dockerd t/docker-ce/usr/bin/
# Debian's is a link to another package's program.
rm t/docker-ce/usr/bin/docker-init
cp -a x/tini/usr/bin/tini-static t/docker-ce/usr/bin/docker-init
unit=$(find t/docker-ce -name docker.service)
sed -i 's#^ExecStart=.*#ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock#; /^EnvironmentFile=/d' "$unit"
cp -a x/containerd/. x/runc/. t/containerd.io/
printf 'disabled_plugins = ["cri"]\n' > t/containerd.io/etc/containerd/config.toml
find t -name '*.service' -o -name '*.socket' | grep -q docker.socket
mkdir -p t/toolkit/usr/bin t/toolkit-base/usr/bin t/toolkit-base/etc/nvidia-container-runtime t/tools/usr/bin
program() { { echo '#!/usr/bin/python3'; cat "/toolkit/${1##*/}"; } > "t/$1" && chmod 755 "t/$1"; }
program toolkit/usr/bin/nvidia-container-runtime-hook
program toolkit-base/usr/bin/nvidia-ctk
program toolkit-base/usr/bin/nvidia-container-runtime
printf '[nvidia-container-cli]\nload-kmods = true\n\n[nvidia-container-runtime]\nmode = "auto"\nruntimes = ["docker-runc", "runc", "crun"]\n' \
    > t/toolkit-base/etc/nvidia-container-runtime/config.toml
printf '#!/bin/sh\nprintf "cli-version: %s\\nlib-version: %s\\n"\n' $toolkit $toolkit > t/tools/usr/bin/nvidia-container-cli
chmod 755 t/tools/usr/bin/nvidia-container-cli

# --- RPM
rpm_package() { # repository name version release architecture tree [header...]
    local repository=$1 name=$2 version=$3 release=$4 architecture=$5 tree=$6
    shift 6
    {
        printf 'Name: %s\nVersion: %s\nRelease: %s\nSummary: %s of the test bed\nLicense: see payload\n' "$name" "$version" "$release" "$name"
        printf 'AutoReqProv: no\nBuildArch: %s\n' "$architecture"
        printf '%s\n' "$@"
        printf '%%description\n%s of the test bed.\n%%install\nmkdir -p %%{buildroot}\n' "$name"
        if [ "$tree" != - ]; then printf 'cp -a %s/. %%{buildroot}/\n' "$work/t/$tree"; fi
        if [ -f "$name.scriptlets" ]; then cat "$name.scriptlets"; fi
        printf '%%files\n'
        if [ "$tree" != - ]; then (cd "t/$tree" && find . \( -type f -o -type l \) | sed 's/^\.//; s/.*/"&"/'); fi
    } > "$name.spec"
    rpmbuild --quiet -bb --define "_topdir $work/rpmbuild" --define "_build_id_links none" --define "debug_package %{nil}" \
        --define "_binary_payload w0.ufdio" --define "__os_install_post %{nil}" --define "_rpmdir $out/$repository/Packages" \
        --define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" "$name.spec"
}
sign_rpms() { # repository key
    find "$out/$1" -name '*.rpm' -exec rpmsign --define "_gpg_name $2@example.invalid" --define "__gpg /usr/bin/gpg" --addsign {} + >/dev/null
    createrepo_c -q "$out/$1"
    gpg --batch --yes --local-user "$2@example.invalid" --detach-sign --armor "$out/$1/repodata/repomd.xml"
}
cat > docker-ce.scriptlets <<'S'
%pre
getent group docker >/dev/null || groupadd --system docker
%post
systemctl daemon-reload || :
%preun
[ $1 -gt 0 ] || systemctl --no-reload disable --now docker.service docker.socket || :
S
cp -a x/git t/git && cp -a x/git-lfs t/git-lfs && cp -a x/runc t/runc
base=rpm/el9/base docker_rpm=download.docker.com/linux/centos/9/x86_64/stable nvidia_rpm=nvidia.github.io/libnvidia-container/stable/rpm/x86_64
rpm_package $base oraclelinux-release 9.5 1.el9 noarch - "Provides: system-release = 9.5" \
    "Provides: system-release(releasever) = 9" "Provides: redhat-release = 9.5" "Provides: /bin/sh" "Provides: systemd" \
    "Provides: iptables" "Provides: python3" "Provides: ca-certificates"
rpm_package $base git "$git" 1.el9 x86_64 git
rpm_package $base git-lfs "$lfs" 1.el9 x86_64 git-lfs "Requires: git"
rpm_package $base runc 1.1.5 1.el9 x86_64 runc
rpm_package $docker_rpm containerd.io "$containerd" 3.1.el9 x86_64 containerd.io "Conflicts: runc" "Provides: container-runtime"
rpm_package $docker_rpm docker-ce-cli "$version" 3.el9 x86_64 docker-ce-cli "Epoch: 1"
rpm_package $docker_rpm docker-ce "$version" 3.el9 x86_64 docker-ce "Epoch: 3" "Requires: containerd.io" "Requires: docker-ce-cli" "Requires: iptables"
for name in docker-buildx-plugin docker-compose-plugin docker-ce-rootless-extras; do
    rpm_package $docker_rpm $name 0.10.4 1.el9 x86_64 -
done
rpm_package $nvidia_rpm libnvidia-container1 $toolkit 1 x86_64 -
rpm_package $nvidia_rpm libnvidia-container-tools $toolkit 1 x86_64 tools "Requires: libnvidia-container1 = $toolkit-1"
rpm_package $nvidia_rpm nvidia-container-toolkit-base $toolkit 1 x86_64 toolkit-base
rpm_package $nvidia_rpm nvidia-container-toolkit $toolkit 1 x86_64 toolkit \
    "Requires: nvidia-container-toolkit-base = $toolkit-1" "Requires: libnvidia-container-tools = $toolkit-1"
sign_rpms $base base
sign_rpms $docker_rpm docker
sign_rpms $nvidia_rpm nvidia
ln -s centos "$out/download.docker.com/linux/rhel"

# --- APT
deb_package() { # folder name version tree [field...]
    local folder=$1 name=$2 version=$3 tree=$4
    shift 4
    rm -rf deb
    mkdir -p deb/DEBIAN "$out/$folder"
    if [ "$tree" != - ]; then cp -a "t/$tree/." deb/; fi
    {
        printf 'Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: Test bed <testbed@example.invalid>\n' "$name" "$version"
        if [ $# -gt 0 ]; then printf '%s\n' "$@"; fi
        printf 'Description: %s of the test bed\n' "$name"
    } > deb/DEBIAN/control
    if [ -f "$name.postinst" ]; then install -m 755 "$name.postinst" deb/DEBIAN/postinst; fi
    if [ -f "$name.prerm" ]; then install -m 755 "$name.prerm" deb/DEBIAN/prerm; fi
    dpkg-deb --root-owner-group -Znone -b deb "$out/$folder/" >/dev/null
}
release() { # folder codename component...
    apt-ftparchive -o "APT::FTPArchive::Release::Origin=Test bed" -o "APT::FTPArchive::Release::Codename=$2" \
        -o "APT::FTPArchive::Release::Suite=$2" -o "APT::FTPArchive::Release::Components=${3:-}" \
        -o APT::FTPArchive::Release::Architectures=amd64 release "$1" > Release.new
    mv Release.new "$1/Release"
}
cat > docker-ce.postinst <<'S'
#!/bin/sh
set -e
getent group docker >/dev/null || groupadd --system docker
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet docker.service docker.socket
    systemctl start docker.service || true
fi
S
cat > docker-ce.prerm <<'S'
#!/bin/sh
set -e
if [ -d /run/systemd/system ] && [ "$1" = remove ]; then systemctl disable --quiet --now docker.service docker.socket || true; fi
S
cat > containerd.io.postinst <<'S'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; systemctl enable --quiet --now containerd.service || true; fi
S
suffix="-1~debian.12~bookworm"
pool=download.docker.com/linux/debian/dists/bookworm/pool/stable/amd64
deb_package $pool containerd.io "$containerd-1" containerd.io "Conflicts: containerd, runc" "Replaces: containerd, runc" "Provides: containerd, runc"
deb_package $pool docker-ce-cli "5:$version$suffix" docker-ce-cli "Conflicts: docker.io" "Replaces: docker.io"
deb_package $pool docker-ce "5:$version$suffix" docker-ce "Depends: containerd.io, docker-ce-cli, iptables" "Conflicts: docker.io" "Replaces: docker.io"
for name in docker-buildx-plugin docker-compose-plugin docker-ce-rootless-extras; do
    deb_package $pool $name "0.10.4$suffix" -
done
(
    cd "$out/download.docker.com/linux/debian"
    mkdir -p dists/bookworm/stable/binary-amd64
    apt-ftparchive packages dists/bookworm/pool > dists/bookworm/stable/binary-amd64/Packages
    gzip -kf dists/bookworm/stable/binary-amd64/Packages
    cd "$work"
    release "$out/download.docker.com/linux/debian/dists/bookworm" bookworm stable
)
flat=nvidia.github.io/libnvidia-container/stable/deb/amd64
deb_package $flat libnvidia-container1 $toolkit-1 -
deb_package $flat libnvidia-container-tools $toolkit-1 tools "Depends: libnvidia-container1 (>= $toolkit-1)"
deb_package $flat nvidia-container-toolkit-base $toolkit-1 toolkit-base
deb_package $flat nvidia-container-toolkit $toolkit-1 toolkit \
    "Depends: nvidia-container-toolkit-base (= $toolkit-1), libnvidia-container-tools (>= $toolkit-1)"
(
    cd "$out/$flat"
    apt-ftparchive packages . > Packages
    gzip -kf Packages
    cd "$work"
    release "$out/$flat" stable
)
for signed in "docker download.docker.com/linux/debian/dists/bookworm" "nvidia $flat"; do
    set -- $signed
    gpg --batch --yes --local-user "$1@example.invalid" --clearsign -o "$out/$2/InRelease" "$out/$2/Release"
    gpg --batch --yes --local-user "$1@example.invalid" -abs -o "$out/$2/Release.gpg" "$out/$2/Release"
done
# The keys where the vendors have them.
cp "$out/keys/docker.asc" "$out/download.docker.com/linux/centos/gpg"
cp "$out/keys/docker.asc" "$out/download.docker.com/linux/debian/gpg"
cp "$out/keys/nvidia.asc" "$out/nvidia.github.io/libnvidia-container/gpgkey"
rm -rf "$work"
