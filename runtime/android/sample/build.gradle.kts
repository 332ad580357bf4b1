plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "io.mtuexport.sample"
    compileSdk = libs.versions.compileSdk.get().toInt()
    defaultConfig {
        applicationId = "io.mtuexport.sample"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.compileSdk.get().toInt()
        versionCode = 1
        versionName = libs.versions.mtu.get()
        ndk.abiFilters += "arm64-v8a"
    }
    buildTypes.release {
        isMinifyEnabled = true
        proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        signingConfig = signingConfigs.getByName("debug") // to try it; not to publish
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
}

dependencies {
    implementation(project(":core"))
    implementation(project(":onnx"))
    implementation(project(":executorch"))
    implementation(project(":android"))
    implementation(libs.onnxruntime.android)
}
