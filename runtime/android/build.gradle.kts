plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.kotlin.jvm) apply false
}

allprojects {
    group = "io.mtuexport"
    version = rootProject.libs.versions.mtu.get()
}
